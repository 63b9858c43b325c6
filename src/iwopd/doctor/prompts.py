"""The data and the benchmarks: rows, columns, rendered prompts, lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iwopd import assembly
from iwopd.config import Config, SourceConfig
from iwopd.config.teachers import teacher_name, teacher_sections
from iwopd.data import Row, answers_within
from iwopd.doctor.findings import Section
from iwopd.doctor.lengths import steps, steps_in_words
from iwopd.doctor.sources import Source
from iwopd.models.rope import context_limit
from iwopd.preflight.graders import check_graders
from iwopd.preflight.problems import benchmark_rows, data_sources, teacher_templates, training_rows
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
            _describe_taught(config, found.prompts, student.tokenizer, section)
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
                for made in assembly.benchmarks(chosen, rows, student.tokenizer, teacher_templates(config).get(None)):
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
        section.note(f"prompt {prompt.id}, {_shown(prompt.ids, tokenizer)}")
    over = sum(prompt.ids[-1:] == [tokenizer.eos_token_id] for prompt in prompts)
    if over:
        section.warn(
            f"{over:,} of {len(prompts):,} prompts end with the end-of-sequence token {tokenizer.eos_token!r}: right "
            "only if the model was trained to answer after it; else the chat template lacks a generation prompt"
        )


def _describe_taught(config: Config, prompts: list[Prompt], tokenizer: Tokenizer, section: Section) -> None:
    """What each teacher with a prompt of its own reads, of the first three problems that it scores."""
    for key, teacher in teacher_sections(config).items():
        name = teacher_name(config, key)
        own = [prompt for prompt in prompts if (prompt.teacher or config.teacher.name) == name and prompt.teacher_ids]
        if teacher.prompt_template is None or not own:
            continue
        counts = [len(prompt.teacher_ids or ()) for prompt in own]
        mean = sum(counts) / len(counts)
        section.note(f"{key} reads prompts of {min(counts):,} to {max(counts):,} tokens, {mean:,.0f} on average")
        for prompt in own[:3]:
            section.note(f"prompt {prompt.id} of {key}, {_shown(prompt.teacher_ids or [], tokenizer)}")


def _shown(ids: list[int], tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(ids)
    cut = text if len(text) <= SHOWN else text[: SHOWN // 2] + " … " + text[-SHOWN // 2 :]
    return f"{len(ids):,} tokens: {cut!r}"


def contexts(config: Config, sources: list[Source], found: Found, section: Section) -> None:
    """Prompt and response against what the models can attend to."""
    most = config.data.max_prompt_tokens
    evaluated = max((len(prompt.ids) for prompt in found.evaluated), default=0)
    limit = config.eval.max_tokens or config.rollout.max_tokens
    for source in sources:
        if source.config is None:
            continue
        own = None if source.name == "student" else source.name
        longest = assembly.longest_taught(config, own or "base", found.prompts) if found.prompts else most
        evaluated = evaluated or longest
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
