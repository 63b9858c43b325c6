"""Benchmarks: their rows, checked before anything loads, and their graders."""

import logging
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from iwopd.config import BenchmarkConfig, EvalConfig
from iwopd.data import Row, cell, load_rows, render, text_of
from iwopd.errors import ConfigError, DataError
from iwopd.evaluation.grading import CodeGrader, ExactGrader, Grader, MathGrader, code_rows
from iwopd.evaluation.grading.sandbox import refusal

if TYPE_CHECKING:
    from iwopd.evaluation.evaluate import Benchmark

log = logging.getLogger(__name__)


def benchmark_rows(config: EvalConfig, *, answers: bool = True) -> dict[str, list[Row]]:
    """The rows of every benchmark, columns and references checked, and their graders tried.

    Args:
        answers: every row must have one.

    Raises:
        ConfigError: there is no benchmark, or its grader cannot be used.
        DataError: a row has no usable prompt or reference.
    """
    if not config.benchmarks:
        raise ConfigError("eval.benchmarks={}: nothing to evaluate on; choose one, e.g. benchmark=[toy]")
    for name in config.benchmarks:
        _check_grader(config, name)
    if any(source.grader == "code" for source in config.benchmarks.values()):
        _check_sandbox(config)
    return {name: _rows(source, f"eval.benchmarks.{name}", answers) for name, source in config.benchmarks.items()}


def _rows(source: BenchmarkConfig, key: str, answers: bool) -> list[Row]:
    if source.grader == "code":
        return code_rows(load_rows(source, key, answers=False), source)
    rows = load_rows(source, key, answers=answers)
    if not answers or source.answer_column is None:
        return rows
    rows = _with_references(rows, source)
    _tell_floats(rows, source, key)
    for number, row in enumerate(rows, start=1):
        if source.grader == "math" and not text_of(cell(row, source.answer_column)).strip():
            raise DataError(
                f"{source.path}: row {number}, column {source.answer_column}: empty, so no answer could be right; "
                "correct or remove the row"
            )
    return rows


def _tell_floats(rows: list[Row], source: BenchmarkConfig, key: str) -> None:
    """Data frames make 42.0 of 42 in a column where a number is missing, and as text that is another reference."""
    if source.grader != "exact":
        return
    column = str(source.answer_column)
    floats = [text_of(value) for row in rows if type(value := cell(row, column)) is float]
    found = [text for text in floats if text.endswith(".0")]
    if found:
        log.warning(
            "%s.answer_column=%s: %d of %d references are floating-point numbers such as %s, which grader=exact "
            "compares as that text; store them as text or as whole numbers",
            *(key, column, len(found), len(rows), found[0]),
        )


def _with_references(rows: list[Row], source: BenchmarkConfig) -> list[Row]:
    """Rows whose answer column holds what `reference_pattern` finds in it."""
    if source.reference_pattern is None:
        return rows
    assert source.answer_column is not None
    pattern, found = re.compile(source.reference_pattern), list[Row]()
    for number, row in enumerate(rows, start=1):
        match = pattern.search(text_of(cell(row, source.answer_column)))
        if match is None:
            raise DataError(
                f"{source.path}: row {number}, column {source.answer_column}: reference_pattern="
                f"{source.reference_pattern} matches nothing in it; correct the row or the pattern"
            )
        found.append({**row, source.answer_column: (match.group(match.re.groups and 1) or "").strip()})
    return found


def _check_grader(config: EvalConfig, name: str) -> None:
    source, key = config.benchmarks[name], f"eval.benchmarks.{name}"
    for field in ("answer_pattern", "reference_pattern"):
        pattern = getattr(source, field)
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(f"{key}.{field}={pattern}: not a regular expression: {error}; correct it") from None
    if source.grader != "exact" and source.answer_pattern is not None:
        raise ConfigError(
            f"{key}.answer_pattern={source.answer_pattern}: grader={source.grader} finds the answer itself; "
            "set it to null, or use grader=exact"
        )
    if source.grader == "math" and find_spec("math_verify") is None:
        raise ConfigError(f"{key}.grader=math: math-verify is not installed; pip install 'math-verify[antlr4_9_3]'")
    if source.grader == "code" and not config.allow_code_execution:
        raise ConfigError(
            f"{key}.grader=code: runs programs that the model wrote; allow it with eval.allow_code_execution=true, "
            "and see eval.sandbox for what confines them"
        )
    if source.grader == "code" and find_spec("evalplus") is None:
        raise ConfigError(f"{key}.grader=code: evalplus is not installed; pip install 'iwopd[code]'")


def sandbox_mode(config: EvalConfig) -> str:
    """What confines programs: namespaces, container or none."""
    return "namespaces" if config.sandbox == "auto" else config.sandbox


def _check_sandbox(config: EvalConfig) -> None:
    reason = refusal(sandbox_mode(config))
    if reason is not None:
        raise ConfigError(
            f"eval.sandbox={config.sandbox}: programs that the model wrote cannot be confined here: {reason}; set "
            "eval.sandbox=container in a container without network and with nothing to lose, or eval.sandbox=none to "
            "let them reach your files and network"
        )
    if config.sandbox == "none":
        log.warning("eval.sandbox=none: programs that the model wrote can reach your files and network")


def grader(config: EvalConfig, name: str) -> Grader:
    """The grader of a benchmark."""
    source = config.benchmarks[name]
    match source.grader:
        case "math":
            return MathGrader(config.grading_timeout_s)
        case "code":
            return CodeGrader(config.code_timeout_s, int(config.code_memory_gib * 2**30), sandbox_mode(config))
        case _:
            return ExactGrader(source.answer_pattern)


def benchmarks(config: EvalConfig, rows: dict[str, list[Row]], tokenizer: Any) -> list["Benchmark"]:
    """Rendered problems with their graders; says which references mean nothing to their grader."""
    from iwopd.evaluation.evaluate import Benchmark

    made: list[Benchmark] = []
    for name, found in rows.items():
        source, chosen = config.benchmarks[name], grader(config, name)
        prompts = render(found, source, tokenizer, key=f"eval.benchmarks.{name}")
        if isinstance(chosen, MathGrader):
            _tell_unreadable(name, chosen, [prompt.answer for prompt in prompts if prompt.answer is not None])
        made.append(Benchmark(name, prompts, chosen))
    return made


def _tell_unreadable(name: str, grader: MathGrader, references: list[str]) -> None:
    try:
        places = grader.unreadable(references)
    finally:
        grader.close()
    if places:
        log.warning(
            "%s: %d of %d references are no mathematics that can be compared, first %r (problem %d): "
            "only an answer spelled the same is right",
            name,
            len(places),
            len(references),
            references[places[0]],
            places[0] + 1,
        )
