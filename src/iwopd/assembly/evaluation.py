"""Benchmarks: rendered problems and their graders."""

import logging

from iwopd.config import BenchmarkConfig, EvalConfig
from iwopd.config.template import columns
from iwopd.data import Row, TeacherTemplate, render, text_problem
from iwopd.evaluation.evaluate import Benchmark
from iwopd.evaluation.grading import CodeGrader, ExactGrader, Grader, MathGrader
from iwopd.preflight.graders import sandbox_mode
from iwopd.types import Tokenizer

log = logging.getLogger(__name__)


def grader(config: EvalConfig, source: BenchmarkConfig) -> Grader:
    """The grader of a benchmark."""
    match source.grader:
        case "math":
            return MathGrader(config.grading_timeout_s)
        case "code":
            return CodeGrader(config.code_timeout_s, int(config.code_memory_gib * 2**30), sandbox_mode(config))
        case _:
            return ExactGrader(source.answer_pattern, config.grading_timeout_s)


def benchmarks(
    config: EvalConfig, rows: dict[str, list[Row]], tokenizer: Tokenizer, template: TeacherTemplate | None = None
) -> list[Benchmark]:
    """Rendered problems with their graders; says which references mean nothing to their grader.

    Args:
        template: what the teacher is asked instead; where a benchmark has not the columns for it, it is asked the same.
    """
    made: list[Benchmark] = []
    for name, found in rows.items():
        source, chosen = config.benchmarks[name], grader(config, config.benchmarks[name])
        key = f"eval.benchmarks.{name}"
        prompts = render(found, source, tokenizer, key=key, templates=_templates(key, found, template))
        if isinstance(chosen, MathGrader):
            _tell_unreadable(name, chosen, [prompt.answer for prompt in prompts if prompt.answer is not None])
        made.append(Benchmark(name, prompts, chosen))
    return made


def _templates(key: str, rows: list[Row], template: TeacherTemplate | None) -> dict[str | None, TeacherTemplate]:
    if template is None:
        return {}
    lacking = [name for name in columns(template.text) if any(text_problem(row, name) for row in rows)]
    if not lacking:
        return {None: template}
    log.info(
        "%s: has no %s for %s: in samples.jsonl the teacher reads its problems as the student does",
        *(key, " and ".join(lacking), template.key),
    )
    return {}


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
