"""The problems of a run as rows: read, their columns checked, before a tokenizer or a model is there."""

import logging
import re
from dataclasses import replace

from iwopd.config import BenchmarkConfig, Config, DataConfig, EvalConfig, TrainingSourceConfig, graded_as
from iwopd.data import Row, get_column, load_rows, text_of
from iwopd.errors import ConfigError, DataError
from iwopd.evaluation.grading import code_rows

log = logging.getLogger(__name__)


def data_sources(data: DataConfig) -> dict[str, TrainingSourceConfig]:
    """The sources of the training problems by their keys; what one of a mixture leaves open is as in `data`."""
    if not data.sources:
        return {"data": data}
    return {
        f"data.sources.{name}": replace(
            source,
            **{part: getattr(data, part) for part in RENDERING if getattr(source, part) is None},
        )
        for name, source in data.sources.items()
    }


RENDERING = ("template", "suffix", "system", "enable_thinking")


def training_rows(config: Config) -> dict[str, list[Row]]:
    """The rows of every source of `data`, columns checked, and the teachers they name.

    Raises:
        DataError: a row names a teacher that is not there.
    """
    sources = data_sources(config.data)
    rows = {key: _training_rows(config, source, key) for key, source in sources.items()}
    known = [config.teacher.name, *config.teachers]
    for key, source in sources.items():
        for number, row in enumerate(rows[key] if source.teacher_column else [], start=1):
            named = get_column(row, source.teacher_column or "")
            if named is not None and text_of(named) not in known:
                raise DataError(
                    f"{source.path}: row {number}, column {source.teacher_column}: {named} is no teacher; there are "
                    f"{', '.join(known)}: add teachers.{named}.path=…, or correct the row"
                )
    return rows


def _training_rows(config: Config, source: TrainingSourceConfig, key: str) -> list[Row]:
    """With answers where they are graded for a reward."""
    if not config.reward.weight:
        return load_rows(source, key, answers=False)
    graded = graded_as(config, source)
    tested = graded.grader == "code"
    return _graded(load_rows(source, key, answers=not tested, whole=tested), graded, key)


def benchmark_rows(config: EvalConfig, *, answers: bool = True) -> dict[str, list[Row]]:
    """The rows of every benchmark, columns and references checked.

    Args:
        answers: every row must have one.

    Raises:
        ConfigError: there is no benchmark.
        DataError: a row has no usable prompt or reference.
    """
    if not config.benchmarks:
        raise ConfigError("eval.benchmarks={}: nothing to evaluate on; choose one, e.g. benchmark=[toy]")
    return {name: _rows(source, f"eval.benchmarks.{name}", answers) for name, source in config.benchmarks.items()}


def _rows(source: BenchmarkConfig, key: str, answers: bool) -> list[Row]:
    if source.grader == "code":
        return _graded(load_rows(source, key, answers=False), source, key)
    rows = load_rows(source, key, answers=answers)
    return _graded(rows, source, key) if answers else rows


def _graded(rows: list[Row], source: BenchmarkConfig, key: str) -> list[Row]:
    """Rows with what their grader needs, checked."""
    if source.grader == "code":
        return code_rows(rows, source)
    if source.answer_column is None:
        return rows
    rows = _with_references(rows, source)
    _tell_floats(rows, source, key)
    for number, row in enumerate(rows, start=1):
        if source.grader == "math" and not text_of(get_column(row, source.answer_column)).strip():
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
    floats = [text_of(value) for row in rows if type(value := get_column(row, column)) is float]
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
        match = pattern.search(text_of(get_column(row, source.answer_column)))
        if match is None:
            raise DataError(
                f"{source.path}: row {number}, column {source.answer_column}: reference_pattern="
                f"{source.reference_pattern} matches nothing in it; correct the row or the pattern"
            )
        found.append({**row, source.answer_column: (match.group(match.re.groups and 1) or "").strip()})
    return found
