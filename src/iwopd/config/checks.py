"""What is wrong with a config's values, alone and together: one line each, with key, value, reason and fix."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from iwopd import tracking
from iwopd.config import horizon, reward, teachers
from iwopd.config.ahead import ahead_problems
from iwopd.config.engines import (
    RolloutConfig,
    VllmRolloutConfig,
    VllmServerRolloutConfig,
    VllmServerScoringConfig,
)
from iwopd.config.models import DataConfig, ScorerConfig, SourceConfig
from iwopd.config.names import name_problem
from iwopd.config.parallel import parallel_problems
from iwopd.config.stored import leaves
from iwopd.setting import is_section

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from iwopd.config import Config


VLLM_HOTTEST = 2.0  # temperature


def problems(config: "Config") -> list[str]:
    """All of them, fields first."""
    return [*_field_problems(config), *_cross_field_problems(config)]


def warnings(config: "Config") -> list[str]:
    """What is allowed in a training and likely not meant: one line each, likewise."""
    return [*_precision_warnings(config), *_sampling_warnings(config)]


def _precision_warnings(config: "Config") -> Iterator[str]:
    if config.student.dtype == "bfloat16" and not config.student.lora.rank:
        yield (
            f"student.dtype=bfloat16, optim.lr={config.optim.lr:g}: a weight in bfloat16 moves by 1/256 of itself or "
            "not at all, and AdamW's steps are about optim.lr, so most weights stay as they are; use "
            "student.dtype=float32 optim.autocast=true, which computes in bfloat16 all the same, or "
            "student.lora.rank=64"
        )


def _sampling_warnings(config: "Config") -> list[str]:
    cut = _cut_off(config.rollout)
    if not cut or config.loss.over_vocabulary:
        return []
    return [
        f"{', '.join(cut)}: the tokens that it cuts off are never sampled, so their part of the gradient is missing, "
        "which loss.importance_cap cannot make good; sample with top_p 1 and top_k 0 (a temperature is made good), or "
        "use loss=reverse_kl"
    ]


def _cut_off(rollout: RolloutConfig) -> list[str]:
    """The settings by which some tokens of the student's distribution are never sampled."""
    top_p = [f"rollout.top_p={rollout.top_p}"] if rollout.top_p < 1 else []
    return top_p + ([f"rollout.top_k={rollout.top_k}"] if rollout.top_k else [])


def _field_problems(section: "DataclassInstance", prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(section):
        value, key = getattr(section, entry.name), prefix + entry.name
        if is_section(value):
            yield from _field_problems(value, key + ".")
        elif isinstance(value, dict):
            for name, item in value.items():  # pyright: ignore[reportUnknownVariableType]
                if is_section(item):  # pyright: ignore[reportUnknownArgumentType]
                    yield from _field_problems(item, f"{key}.{name}.")
        elif value is not None and entry.metadata:
            problem = _value_problem(value, entry.metadata)
            if problem:
                yield f"{key}={value}: {problem}"


def _value_problem(value: object, about: Mapping[str, Any]) -> str | None:
    if about["choices"] and value not in about["choices"]:
        listed: tuple[str, ...] = about["choices"]
        near = get_close_matches(str(value), listed, n=1, cutoff=0.5)
        choices = ", ".join(listed)
        return f"not a choice; {f'did you mean {near[0]}? ' if near else ''}choose one of {choices}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    low, high, above = about["low"], about["high"], about["above"]
    fits = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if fits and math.isfinite(value):
        return None
    bounds = [
        *([f"at least {low:g}"] if low is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"at most {high:g}"] if high is not None else []),
    ]
    wanted = " and ".join(bounds) or "finite"
    return f"must be {wanted}; {about['fix'] or f'set a finite number {wanted}'}"


def _cross_field_problems(config: "Config") -> Iterator[str]:
    optim, data, evaluation = config.optim, config.data, config.eval
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas={optim.betas}: must be two numbers from 0 up to but not 1; AdamW's default is [0.9,0.999]"
    if data.batch_size % optim.updates_per_batch:
        yield (
            f"optim.updates_per_batch={optim.updates_per_batch}: does not divide data.batch_size={data.batch_size}; "
            "choose a divisor of it"
        )
    if evaluation.n is not None and evaluation.k > evaluation.n:
        yield (
            f"eval.k={evaluation.k}: larger than eval.n={evaluation.n}, and pass@k needs k samples; "
            f"raise eval.n or set eval.k={evaluation.n}"
        )
    for name in evaluation.benchmarks:
        if (problem := name_problem(name)) is not None:
            yield f"eval.benchmarks.{name}: {problem}"
    yield from _userinfo_problems(config)
    yield from _date_problems(config.run.date)
    yield from _data_problems(data)
    yield from _model_problems(config)
    yield from teachers.problems(config)
    yield from _loss_problems(config)
    yield from reward.problems(config)
    yield from _engine_problems(config)
    yield from ahead_problems(config)
    yield from parallel_problems(config)
    yield from horizon.problems(config.rollout, config.weighting, evaluated=bool(config.eval.benchmarks))
    yield from config.weighting.problems()
    yield from _control_problems(config)
    yield from tracking.problems(config.tracking)


OF_ONE_SOURCE = ("path", "subset", "revision", "filter", "limit", "teacher_column")


def _data_problems(data: DataConfig) -> Iterator[str]:
    mixed: dict[str, SourceConfig] = {f"data.sources.{name}": each for name, each in data.sources.items()}
    for key, source in {"data": data, **mixed}.items():
        if source.template is not None and "{prompt}" not in source.template:
            yield f"{key}.template={source.template}: has no place for the problem; write {{prompt}} where it belongs"
        if source.path is None and not data.sources:
            yield f"{key}.path=null: no data; name a file or a hub dataset, or several with data.sources"
    if data.sources:
        for name in OF_ONE_SOURCE:
            if getattr(data, name) is not None:
                yield (
                    f"data.{name}={getattr(data, name)}: data.sources has sources of its own; set "
                    f"data.sources.{next(iter(data.sources))}.{name}, or data.{name}=null"
                )


def _date_problems(date: str | None) -> Iterator[str]:
    try:
        datetime.fromisoformat(date or "2026-01-31")
    except ValueError:
        yield f"run.date={date}: not a date; write e.g. 2026-01-31 or 2026-01-31T12:00:00"


def _model_problems(config: "Config") -> Iterator[str]:
    if config.run.device != "auto" and not _is_device(config.run.device):
        yield f"run.device={config.run.device}: not a device; use auto, cpu, cuda, cuda:N or mps"
    teachers: dict[str, ScorerConfig] = {f"teachers.{name}": each for name, each in config.teachers.items()}
    for key, model in {"teacher": config.teacher, "base": config.base, **teachers}.items():
        if model.device is not None and not _is_device(model.device):
            yield f"{key}.device={model.device}: not a device; use cpu, cuda, cuda:N or mps, or null for run.device"
    for name, each in config.teachers.items():
        if name == config.teacher.name:
            yield f"teachers.{name}: teacher.name is {name} too; give one of them another name"
        if each.name not in ("default", name):
            yield f"teachers.{name}.name={each.name}: its name is {name} already; leave it out"
        if isinstance(config.scoring, VllmServerScoringConfig):
            yield from _url_problems(f"teachers.{name}.urls", each.urls or [])
    known = [config.teacher.name, *config.teachers]
    for name, source in config.data.sources.items():
        if source.teacher is not None and source.teacher not in known:
            yield f"data.sources.{name}.teacher={source.teacher}: no such teacher; there are {', '.join(known)}"


def _loss_problems(config: "Config") -> Iterator[str]:
    loss, weighting, signal = config.loss, config.weighting, config.loss.teacher_signal
    yield from loss.problems()
    if loss.over_vocabulary and config.scoring.student_logprobs == "sampler":
        yield (
            f"scoring.student_logprobs=sampler: loss.kind={loss.kind} compares whole distributions, which the sampler "
            "does not report; use scoring.student_logprobs=trainer"
        )
    if weighting.measures and signal.kind == "sampled":
        yield (
            f"weighting={weighting.name}: needs the teacher's distribution, and loss.signal={loss.signal} has the "
            "log-prob of the sampled token alone; set loss.signal=top_k or loss.signal=full"
        )
    if weighting.measures and signal.kind == "top_k" and signal.k < weighting.needed_top_k:
        yield (
            f"loss.top_k={signal.k}: weighting={weighting.name} looks at the teacher's {weighting.needed_top_k} "
            f"likeliest tokens; raise it to {weighting.needed_top_k} or more"
        )


def _control_problems(config: "Config") -> Iterator[str]:
    """A scheme that brings an advantage of its own."""
    loss, said = config.loss, f"weighting.scheme={config.weighting.name}"
    if config.weighting.advantage is None:
        return
    if loss.over_vocabulary:
        yield f"{said}: brings an advantage of its own, and loss.kind={loss.kind} has none; use loss=policy_gradient"
    for key, usual in (("exopd_lambda", 1), ("baseline", "none")):
        if getattr(loss, key) != usual:
            found = getattr(loss, key)
            yield f"loss.{key}={found}: changes the advantage, and {said} brings one of its own; set loss.{key}={usual}"


def _engine_problems(config: "Config") -> Iterator[str]:
    rollout, scoring = config.rollout, config.scoring
    cut = _cut_off(rollout)
    changed = [*([f"rollout.temperature={rollout.temperature}"] if rollout.temperature != 1 else []), *cut]
    if changed and config.loss.importance_cap is None and not config.loss.over_vocabulary:
        yield (
            f"{', '.join(changed)}: samples another distribution than the student's. The importance correction makes "
            "good a temperature, and top_p and top_k only in part; set loss.importance_cap=5.0, or sample with "
            "temperature 1, top_p 1, top_k 0"
        )
    if changed and scoring.student_logprobs == "sampler":
        yield (
            f"{', '.join(changed)}: the sampler's log-probs are of the changed distribution, not the student's, so "
            "A_t would be wrong; use scoring.student_logprobs=trainer"
        )
    if isinstance(rollout, (VllmRolloutConfig, VllmServerRolloutConfig)):
        evaluated = ("eval.temperature", config.eval.temperature)
        for key, temperature in (("rollout.temperature", rollout.temperature), evaluated):
            if temperature > VLLM_HOTTEST:
                yield f"{key}={temperature:g}: vLLM takes at most {VLLM_HOTTEST:g}; lower it, or use rollout=hf"
    for key, section in (("rollout", rollout), ("scoring", scoring)):
        if isinstance(section, (VllmServerRolloutConfig, VllmServerScoringConfig)):
            yield from _url_problems(f"{key}.urls", section.urls)


def _userinfo_problems(config: "Config") -> Iterator[str]:
    """Addresses with a user name or password, in whatever setting; not shown."""
    for key, value in leaves(dataclasses.asdict(config)):
        setting = re.sub(r"(\.\d+)+$", "", key)
        inside = r"@" if setting.endswith("urls") else r"://[^/\s?#]*@"
        if isinstance(value, str) and re.search(inside, value):
            yield (
                f"{setting}: an address holds a user name or password, which would be written to the run's files; "
                "leave it out, and give servers an API key in the environment variable VLLM_API_KEY"
            )


def _url_problems(key: str, urls: list[str]) -> Iterator[str]:
    if not urls:
        yield f"{key}=[]: names no server; give {key}=[http://HOST:PORT]"
    for url in urls:
        if "@" not in url and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
            yield f"{key}={url}: not an address; write {key}=[http://HOST:PORT]"
    for url in sorted({url for url in urls if urls.count(url) > 1}):
        yield f"{key}={url}: duplicate address; name each server once"


def _is_device(name: str) -> bool:
    return re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]?))?", name) is not None
