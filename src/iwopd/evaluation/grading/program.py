"""A program in its process: it is loaded, its functions are called, and what they return goes back as plain values.

    {"do": "tidy", "code": …, "entry_point": …}     →  {"code": "def f…"}         the parts of a program that count
    {"do": "load", "code": …, "imports": …}         →  {"names": ["f", …]}        what can be called
    {"do": "call", "name": "f", "arguments": …}     →  {"value": …}
                                                       or {"raised": "ValueError"}

Nothing else comes here: not what is expected, not the reference solution, not the test. So whatever a program does to
this process, it can only change its own answers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from evalplus.eval.utils import reliability_guard, swallow_io
from evalplus.sanitize import sanitize

from iwopd.evaluation.grading.lines import Lines, Message
from iwopd.evaluation.grading.plain import decode, encode

LONG = 400  # lines; evalplus' extraction tries every pair of them


def run(connection: int, memory: int) -> None:
    """Answer until the process that judges closes the connection.

    Args:
        memory: bytes of address space.
    """
    lines = Lines(connection, connection, longest=None)
    lines.send({"ready": True})
    lines.serve(_Program(memory).answer)


class _Program:
    def __init__(self, memory: int):
        self.memory = memory
        self.space: dict[str, Any] = {}
        self.quiet: Callable[[], AbstractContextManager[None]] = swallow_io  # pyright: ignore[reportAttributeAccessIssue]

    def answer(self, question: Message) -> Message:
        try:
            return getattr(self, question["do"])(**{key: question[key] for key in question if key not in ("do", "id")})
        except BaseException as error:  # programs raise what they like, SystemExit included
            return {"raised": type(error).__name__}

    def tidy(self, code: str, entry_point: str | None) -> Message:
        """evalplus' sanitisation: imports, and the definitions that the function needs."""
        return {"code": sanitize(code, entry_point) if code.count("\n") <= LONG else code}

    def load(self, code: str, imports: list[str]) -> Message:
        """Run the program, which defines functions; evalplus' guard against accidents first."""
        compiled = compile(code, "answer", "exec")
        reliability_guard(maximum_memory_bytes=self.memory)
        with self.quiet():
            exec("\n".join(imports), self.space)
            exec(compiled, self.space)
        return {"names": [name for name, value in self.space.items() if callable(value)]}

    def call(self, name: str, arguments: object, named: object) -> Message:
        """One call."""
        with self.quiet():
            value = self.space[name](*decode(arguments), **decode(named))
            encoded = encode(value, opaque=True)
        return {"value": encoded}
