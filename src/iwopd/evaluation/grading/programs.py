"""Programs as answers: problems of HumanEval+ and MBPP+, judged as evalplus does, in confined processes."""

import ast
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from iwopd.config import BenchmarkConfig
from iwopd.errors import ConfigError, DataError, EngineError
from iwopd.evaluation.grading.base import Grader, Verdict
from iwopd.evaluation.grading.pool import Pool
from iwopd.evaluation.grading.sandbox import ENVIRONMENT
from iwopd.types import Prompt

log = logging.getLogger(__name__)

# evalplus' own wording, so that figures can be compared with its.
ASK = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
NATIVE = ("entry_point", "canonical_solution", "base_input", "plus_input")
GRACE = 10.0  # seconds beyond a program's own, for the process that runs it to say so


class CodeGrader(Grader):
    """Right when the program passes all of its problem's tests.

    The program runs in a process of its own, confined as `sandbox` says (see `iwopd.evaluation.grading.sandbox`), with
    limits of time and memory; it is given inputs and returns plain values. Another process has the tests and
    compares, as evalplus does. All that a program started is killed.

    Args:
        seconds: for all tests of one program.
        memory: bytes of address space.
        sandbox: namespaces, container or none.
    """

    def __init__(self, seconds: float, memory: int, sandbox: str = "namespaces"):
        self.sandbox = sandbox
        self._warned = False
        self._pool = Pool(
            f"eval.sandbox={sandbox}",
            "iwopd.evaluation.grading.run_code",
            [str(seconds), str(memory), sandbox],
            seconds + GRACE,
            {"status": str, "code": str},
            environment(),
        )

    def __call__(self, responses: Sequence[tuple[str, Prompt]]) -> list[Verdict]:
        """See `Grader`.

        Raises:
            EngineError: a program's process could not be set up.
        """
        found = self._pool.ask([{"response": text, "problem": prompt.row["problem"]} for text, prompt in responses])
        return list(map(self._verdict, found))

    def _verdict(self, line: dict[str, Any] | None) -> Verdict:
        if line is None:
            return Verdict(False, None, timed_out=True)
        if line["status"] == "unconfined":
            raise EngineError(
                f"eval.sandbox={self.sandbox}: a program's process could not be set up: {line.get('note')}"
            )
        if line["status"] == "unsendable" and not self._warned:
            self._warned = True
            log.warning("a test gives programs %s, which cannot be handed to them: they count as wrong", line["note"])
        return Verdict(line["status"] == "pass", line["code"], timed_out=line["status"] == "timeout")

    def close(self) -> None:
        """See `Grader`."""
        self._pool.close()


def environment() -> dict[str, str]:
    """All that processes for programs have of ours: where libraries and temporary files are."""
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH", "TMPDIR") if key in os.environ}
    return {**ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1", **kept}


def code_rows(rows: Sequence[dict[str, Any]], source: BenchmarkConfig) -> list[dict[str, Any]]:
    """Rows whose prompt asks for a program, and whose `problem` is what evalplus needs to judge it.

    Rows are in evalplus' own format (entry_point, canonical_solution, base_input, plus_input, atol) or in that of its
    datasets on the hub (test, and entry_point or test_list).

    Raises:
        ConfigError: they have neither.
        DataError: one of them is without tests.
    """
    if not ("test" in rows[0] or all(column in rows[0] for column in NATIVE)):
        raise ConfigError(
            f"{source.path}: has neither a column test nor {', '.join(NATIVE)}, which grader=code needs; "
            f"it has {', '.join(rows[0])}"
        )
    made: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        problem = {**row, "prompt": str(row[source.prompt_column])}
        if not (row.get("test") or all(row.get(column) is not None for column in NATIVE)):
            raise DataError(f"{source.path}: row {number}: has no tests; correct or remove the row")
        problem["entry_point"] = row.get("entry_point") or _tested_function(row)
        made.append({**row, source.prompt_column: _asking(problem), "problem": problem})
    return made


def _asking(problem: dict[str, Any]) -> str:
    text, tests = problem["prompt"].strip(), problem.get("test_list")
    if isinstance(tests, list) and tests and str(tests[0]) not in text:  # else nobody could know the function's name
        text = f'"""\n{text}\n{tests[0]}\n"""'
    return f"{ASK}\n```python\n{text}\n```"


def _tested_function(row: dict[str, Any]) -> str | None:
    """The name that the tests call, of the functions in the reference solution."""
    tests = str((row.get("test_list") or [row.get("test", "")])[0])
    try:
        names = [
            node.name for node in ast.walk(ast.parse(str(row.get("code", "")))) if isinstance(node, ast.FunctionDef)
        ]
    except SyntaxError:
        return None
    return next((name for name in names if re.search(rf"\b{re.escape(name)}\s*\(", tests)), None)


def code_block(response: str, entry_point: str | None) -> str:
    """The program in a response: its last code block that defines the function, or its last one, or all of it."""
    blocks = re.findall(
        r"```[ \t]*+(?:python|py|Python|python3)?[ \t]*+\n(.*?)(?:\n[ \t]*+```|\Z)", response, re.DOTALL
    )
    defining = [block for block in blocks if entry_point and re.search(rf"def\s+{re.escape(entry_point)}\b", block)]
    return (defining or blocks or [response])[-1]
