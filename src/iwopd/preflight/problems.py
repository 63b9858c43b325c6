"""The problems of a run as rows: read, their columns checked, before a tokenizer or a model is there."""

import logging
import re
from dataclasses import replace

from iwopd.config import BenchmarkConfig, Config, DataConfig, EvalConfig, TrainingSourceConfig, graded_as
from iwopd.config.teachers import teacher_name, teacher_sections
from iwopd.config.template import columns
from iwopd.data import Row, TeacherTemplate, get_column, load_rows, text_of
from iwopd.data.rows import check_texts
from iwopd.data.values import is_missing
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


def teacher_templates(config: Config) -> dict[str | None, TeacherTemplate]:
    """What teachers are asked instead of the student, by their names; None for problems that name none."""
    found: dict[str | None, TeacherTemplate] = {}
    for key, section in teacher_sections(config).items():
        if section.prompt_template is not None:
            template = TeacherTemplate(f"{key}.prompt_template", section.prompt_template)
            found |= dict.fromkeys((teacher_name(config, key), *([None] if key == "teacher" else [])), template)
    return found


def required_columns(template: TeacherTemplate | None) -> dict[str, str]:
    """The columns that every problem must have for a teacher's prompt, by what names them."""
    return {f"{template.key}, {{{name}}}": name for name in columns(template.text)} if template else {}


def training_rows(config: Config) -> dict[str, list[Row]]:
    """The rows of every source of `data`, columns checked, and the teachers they name.

    Raises:
        DataError: a row names a teacher that is not there, or has not what this teacher's prompt needs.
    """
    sources, templates = data_sources(config.data), teacher_templates(config)
    wanted = [name for template in templates.values() for name in columns(template.text)]
    rows = dict[str, list[Row]]()
    for key, source in sources.items():
        one = not source.teacher_column  # else rows tell it, each its own
        required = required_columns(templates.get(getattr(source, "teacher", None))) if one else {}
        rows[key] = _training_rows(config, source, key, required, wanted)
    known = [config.teacher.name, *config.teachers]
    for key, source in sources.items():
        for number, row in enumerate(rows[key] if source.teacher_column else [], start=1):
            named = get_column(row, source.teacher_column or "")
            if named is not None and text_of(named) not in known:
                raise DataError(
                    f"{source.path}: row {number}, column {source.teacher_column}: {named} is no teacher; there are "
                    f"{', '.join(known)}: add teachers.{named}.path=…, or correct the row"
                )
            template = templates.get(None if is_missing(named) else text_of(named))
            check_texts(row, number, source, required_columns(template))
    return rows


def _training_rows(
    config: Config, source: TrainingSourceConfig, key: str, required: dict[str, str], wanted: list[str]
) -> list[Row]:
    """With answers where they are graded for a reward."""
    if not config.reward.weight:
        return load_rows(source, key, answers=False, required=required, wanted=wanted)
    graded = graded_as(config, source)
    tested = graded.grader == "code"
    rows = load_rows(source, key, answers=not tested, required=required, wanted=wanted, whole=tested)
    return _graded(rows, graded, key)


def benchmark_rows(
    config: EvalConfig, *, answers: bool = True, template: TeacherTemplate | None = None
) -> dict[str, list[Row]]:
    """The rows of every benchmark, columns and references checked.

    Args:
        answers: every row must have one.
        template: of a teacher's prompts; every row must have its columns.

    Raises:
        ConfigError: there is no benchmark.
        DataError: a row has no usable prompt or reference.
    """
    if not config.benchmarks:
        raise ConfigError("eval.benchmarks={}: nothing to evaluate on; choose one, e.g. benchmark=[toy]")
    required = required_columns(template)
    return {
        name: _rows(source, f"eval.benchmarks.{name}", answers, required) for name, source in config.benchmarks.items()
    }


def _rows(source: BenchmarkConfig, key: str, answers: bool, required: dict[str, str]) -> list[Row]:
    if source.grader == "code":
        return _graded(load_rows(source, key, answers=False, required=required), source, key)
    rows = load_rows(source, key, answers=answers, required=required)
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
