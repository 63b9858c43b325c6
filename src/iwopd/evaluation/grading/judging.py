"""What a program's functions return, judged: by evalplus with its own inputs, or by a test that the dataset brings.

The functions stand in another process; here stand the expected outputs, the reference solution and the test, all of
them the dataset's.
"""

import builtins
import contextlib
import importlib
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from types import CodeType
from typing import Any

from evalplus.data.mbpp import mbpp_deserialize_inputs
from evalplus.eval import MBPP_OUTPUT_NOT_NONE_TASKS, untrusted_check
from evalplus.gen.util import trusted_exec
from numpy import size

from iwopd.evaluation.grading.lines import Broken, Lines
from iwopd.evaluation.grading.plain import Unplain, decode, encode

Problem = dict[str, Any]
# A test may stop early, and in silence, where one of these comes out of a call.
NOT_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)
STUB = "from iwopd.evaluation.grading.judging import answering\nglobals()[{name!r}] = answering()"


class Unconfined(Exception):
    """The process of a program could not be set up."""


class Unsendable(Exception):
    """A test gives a program something that cannot be written down, such as a function."""


class Raised(Exception):
    """A program has raised something, or its process has ended."""


class Program:
    """A program in its process, as seen from the one that judges.

    Args:
        connection: to it.

    Raises:
        Unconfined: its process could not be set up.
    """

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._lines = Lines(connection.fileno(), connection.fileno())
        try:
            problem = self._lines.receive().get("problem")
        except Broken as error:
            problem = f"its process {error}"
        if problem:
            raise Unconfined(str(problem)[:400])

    def tidy(self, code: str, entry_point: str | None) -> str:
        """The parts that count."""
        return self._lines.ask({"do": "tidy", "code": code, "entry_point": entry_point}, {"code": str})["code"]

    def load(self, code: str, imports: list[str]) -> set[str]:
        """Run it; the names that can be called."""
        found = self._ask({"do": "load", "code": code, "imports": imports})
        return {name for name in found.get("names") or () if isinstance(name, str)}

    def function(self, name: str) -> Callable[..., Any]:
        """One of its functions."""

        def call(*arguments: object, **named: object) -> object:
            try:
                sent = {"arguments": encode(arguments, opaque=False), "named": encode(named, opaque=False)}
            except Unplain as error:
                raise Unsendable(str(error)) from None
            return decode(self._ask({"do": "call", "name": name, **sent}).get("value"))

        return call

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            found = self._lines.ask(question, {})
        except Broken as error:
            raise Raised(str(error)) from None
        if "raised" in found:
            kind = getattr(builtins, str(found["raised"]), None)
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_RAISED):
                raise kind()
            raise Raised(str(found["raised"])[:100])
        return found


def judge(code: str, problem: Problem, start: Callable[[], Program]) -> tuple[str, str]:
    """pass, fail or timeout; and the parts of the program that counted.

    Args:
        start: another process for it.

    Raises:
        Unconfined: there is none.
        Unsendable: the test cannot be applied.
    """
    first = start()
    code = first.tidy(code, problem["entry_point"])
    programs = chain([first], iter(start, None))
    return (by_inputs if problem.get("base_input") is not None else by_test)(code, problem, programs), code


# ---------------------------------------------------------------------------------------------- evalplus


def by_inputs(code: str, problem: Problem, programs: Iterator[Program]) -> str:
    """evalplus' own format: outputs are compared with those of the reference solution, by evalplus."""
    name, task = problem["entry_point"], str(problem["task_id"])
    dataset = "mbpp" if task.startswith("Mbpp") else "humaneval"
    for kind in ("base_input", "plus_input"):
        inputs = problem[kind]
        if not inputs:
            continue
        if dataset == "mbpp":
            inputs = mbpp_deserialize_inputs(task, inputs)
        reference = problem["prompt"] + problem["canonical_solution"]
        not_none = dataset == "mbpp" and name in MBPP_OUTPUT_NOT_NONE_TASKS
        times: Any
        expected, times = trusted_exec(reference, inputs, name, record_time=True, output_not_none=not_none)
        atol = problem.get("atol") or 0
        judged[:] = [next(programs), code, name, expected]
        stub = STUB.format(name=name)
        status, _ = untrusted_check(dataset, stub, inputs, name, expected, atol, times, fast_check=True)
        if status != "pass":
            return status
    return "pass"


judged: list[Any] = []  # program, its code, its function and what is expected: for the stub, in a fork of this process


def answering() -> Callable[..., Any]:
    """For the stub that evalplus takes for the program: the function of the one that is being judged."""
    program, code, name, expected = judged
    if name not in program.load(code, []):
        raise Raised(f"defines no {name}")
    call, left = program.function(name), iter(expected)

    def answer(*arguments: object) -> object:
        value = call(*arguments)
        if _hollow(value, next(left)):
            raise Raised("nothing where a number is expected")
        return value

    return answer


def _hollow(value: object, expected: object) -> bool:
    """[[]] for [0.5], which numpy.allclose takes for close: there is nothing in it that differs."""
    several = (list, tuple)
    if not (isinstance(value, several) and isinstance(expected, several) and len(value) == len(expected)):
        return False
    pairs = zip(value, expected, strict=True)
    return any(isinstance(mine, several) and isinstance(their, float) and not size(mine) for mine, their in pairs)


# ---------------------------------------------------------------------------------------------- tests


def by_test(code: str, problem: Problem, programs: Iterator[Program]) -> str:
    """The hub's format: code that calls the function, and raises where the answer is wrong."""
    program = next(programs)
    name, test, imports = problem["entry_point"], str(problem["test"]), problem.get("test_imports") or []
    names = program.load(code, imports)
    if name and name not in names:
        return "fail"
    space = dict[str, Any]()
    exec("\n".join(imports), space)
    compiled = compile(test, "test", "exec")
    helpers = _helpers(problem)
    for wanted in _globals_of(compiled):
        if wanted == name or (wanted in names and wanted not in helpers and not hasattr(builtins, wanted)):
            space[wanted] = program.function(wanted)
        elif wanted in helpers:
            space.setdefault(wanted, helpers[wanted])
        elif wanted in sys.stdlib_module_names:  # tests may count on what programs import
            with contextlib.suppress(ImportError):
                space.setdefault(wanted, importlib.import_module(wanted))
    exec(compiled, space)
    if "check" in space and name and "def check(" in test:
        space["check"](program.function(name))
    return "pass"


def _helpers(problem: Problem) -> dict[str, Any]:
    """What the prompt, where it is code, gives to programs and tests beside the function that is asked for."""
    space = dict[str, Any]()
    try:
        exec(compile(str(problem["prompt"]), "prompt", "exec"), space)
    except Exception:  # prose
        return {}
    space.pop(str(problem["entry_point"]), None)
    return {} if problem["entry_point"] is None else space


def _globals_of(code: CodeType) -> Iterator[str]:
    """The names that code may look up, those within its functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)
