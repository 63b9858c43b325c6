"""The data and the benchmarks: rows, columns, rendered prompts, lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iwopd import assembly
from iwopd.config import Config, SourceConfig
from iwopd.data import Row, answers_within
from iwopd.doctor.findings import Section
from iwopd.doctor.lengths import steps, steps_in_words
from iwopd.doctor.sources import Source
from iwopd.models.rope import context_limit
from iwopd.preflight.graders import check_graders
from iwopd.preflight.problems import benchmark_rows, data_sources, training_rows
from iwopd.types import Prompt, Tokenizer

SHOWN = 600  # characters of a rendered prompt


@dataclass
class Found:
    """Attributes:
    prompts: of the training data, rendered; empty where that could not be done.
    evaluated: of all benchmarks.
    problems: rows of all benchmarks together.
    """

    prompts: list[Prompt] = field(default_factory=list[Prompt])
    evaluated: list[Prompt] = field(default_factory=list[Prompt])
    problems: int = 0


def look(config: Config, student: Source, section: Section) -> Found:
    """Everything that can be said of the data without a model."""
    found = Found()
    with section.guarded():
        rows = training_rows(config)
        for key, source in data_sources(config.data).items():
            kept = f", as {source.filter}" if source.filter else ""
            section.ok(f"{key}.path={source.path}: {len(rows[key]):,} rows{kept}, with columns {_columns(rows[key])}")
        if student.tokenizer is not None:
            stream, dropped = assembly.prompt_stream(config, rows, student.tokenizer)
            found.prompts = list(stream.prompts)
            _describe(found.prompts, student.tokenizer, section, shown=3)
            for key, source in data_sources(config.data).items():
                _warn_of_answers(rows[key], source, section)
            if dropped:
                most = config.data.max_prompt_tokens
                section.warn(f"{dropped:,} prompts of more than {most:,} tokens are dropped (data.overlong=drop)")
            section.ok(
                f"batches of {config.data.batch_size:,} prompts: {stream.steps_per_epoch:,} steps per epoch, "
                f"{steps(config) / stream.steps_per_epoch:.2g} epochs in {steps_in_words(config).rstrip(',')}"
            )
    for name, source in config.eval.benchmarks.items():
        with section.guarded():
            chosen = replace(config.eval, benchmarks={name: source})
            check_graders(chosen)
            rows = benchmark_rows(chosen)
            count = sum(map(len, rows.values()))
            found.problems += count
            section.ok(f"benchmark {name}: {count:,} problems with columns {_columns(next(iter(rows.values())))}")
            if student.tokenizer is not None:
                for made in assembly.benchmarks(chosen, rows, student.tokenizer):
                    prompts: Any = made.prompts
                    found.evaluated += prompts
                    _describe(prompts, student.tokenizer, section, shown=1)
                    _warn_of_answers(rows[name], source, section)
    return found


def _columns(rows: Sequence[Row]) -> str:
    return ", ".join(rows[0]).encode(errors="backslashreplace").decode()


def _warn_of_answers(rows: list[Row], source: SourceConfig, section: Section) -> None:
    remark = answers_within(rows, source)
    if remark:
        section.warn(remark)


def _describe(prompts: list[Prompt], tokenizer: Tokenizer, section: Section, *, shown: int) -> None:
    counts = [len(prompt.ids) for prompt in prompts]
    section.note(f"prompts of {min(counts):,} to {max(counts):,} tokens, {sum(counts) / len(counts):,.0f} on average")
    for prompt in prompts[:shown]:
        text = tokenizer.decode(prompt.ids)
        cut = text if len(text) <= SHOWN else text[: SHOWN // 2] + " … " + text[-SHOWN // 2 :]
        section.note(f"prompt {prompt.id}, {len(prompt.ids):,} tokens: {cut!r}")
    over = sum(prompt.ids[-1:] == [tokenizer.eos_token_id] for prompt in prompts)
    if over:
        section.warn(
            f"{over:,} of {len(prompts):,} prompts end with the end-of-sequence token {tokenizer.eos_token!r}: right "
            "only if the model was trained to answer after it; else the chat template lacks a generation prompt"
        )


def contexts(config: Config, sources: list[Source], longest: int, evaluated: int, section: Section) -> None:
    """Prompt and response against what the models can attend to."""
    limit = config.eval.max_tokens or config.rollout.max_tokens
    for source in sources:
        if source.config is None:
            continue
        with section.guarded():
            assembly.check_context(source.name, source.config, "rollout.max_tokens", longest, config.rollout.max_tokens)
            if source.name == "student" and config.eval.benchmarks:
                assembly.check_context(source.name, source.config, "eval.max_tokens", evaluated, limit)
            context = context_limit(source.config)
            scaling = getattr(source.config, "rope_parameters", None) or getattr(source.config, "rope_scaling", None)
            kind = scaling.get("rope_type", "default") if isinstance(scaling, dict) else "default"
            section.ok(
                f"{source.name}: {longest + config.rollout.max_tokens:,} tokens of prompt and response, of "
                f"{f'{context:,}' if context else 'any number'} it can attend to"
                + (f", with rope scaling {kind}" if kind != "default" else "")
            )
