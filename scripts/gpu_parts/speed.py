"""How fast the stages of a step are, in the ways they can be set."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from gpu_parts.common import (
    NEVER,
    WEIGHTING,
    Work,
    empty,
    forward_flops,
    make_model,
    make_prompts,
    make_rollouts,
    mib,
    model_config,
    timed,
)
from iwopd.config import (
    Config,
    DataConfig,
    HfRolloutConfig,
    HfScoringConfig,
    OptimConfig,
    StudentConfig,
    TeacherConfig,
)
from iwopd.doctor.lengths import lengths
from iwopd.doctor.machine import Machine
from iwopd.doctor.models import student_model, teacher_model
from iwopd.doctor.plan import Plan
from iwopd.models.compiled import compile_layers
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import ScoredRollout

MICRO_BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Way:
    """How an update is set up.

    Attributes:
        backend: of PyTorch's scaled_dot_product_attention; None for its own choice.
        compiled: torch.compile of the decoder's layers.
        deterministic: as `run.deterministic`, the default on a GPU.
    """

    work: Work
    checkpointing: bool = False
    backend: str | None = None
    compiled: bool = False
    deterministic: bool = False

    def __str__(self) -> str:
        said = [str(self.work), self.backend and f"attention {self.backend}", self.checkpointing and "checkpointing"]
        said += [self.compiled and "compiled", self.deterministic and "deterministic"]
        return ", ".join(filter(None, said))


def ways(long: Work, short: Work, compiled: bool) -> list[Way]:
    """Those that are timed, the plainest first."""
    found = [
        Way(long),
        Way(long, deterministic=True),
        Way(long, compiled=True),
        Way(long, checkpointing=True),
        Way(long, backend="CUDNN_ATTENTION"),
        Way(long, backend="FLASH_ATTENTION"),
        Way(long, compiled=True, checkpointing=True),
        Way(short),
        Way(short, compiled=True),
        Way(short, checkpointing=True),
    ]
    return [way for way in found if compiled or not way.compiled]


def scored_at_random(work: Work, vocabulary: int) -> list[ScoredRollout]:
    """Rollouts with log-probs that no teacher gave: an update takes as long with them."""
    return [
        ScoredRollout(rollout, 0, work.response, rollout.sampler_logprobs - 0.1)
        for rollout in make_rollouts(work, vocabulary)
    ]


def new_student(device: torch.device, shape: dict[str, int], checkpointing: bool = False) -> Student:
    model = make_model(shape, 0, device=device)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    language_model = LanguageModel(model, autocast=True, name="student")
    return Student(language_model, OptimConfig(lr=1e-6), MICRO_BATCH_TOKENS)


def one_way(device: torch.device, shape: dict[str, int], way: Way) -> dict[str, Any]:
    """An update's seconds and memory, beside what `iwopd doctor` says it needs."""
    student = new_student(device, shape, way.checkpointing)
    if way.compiled:
        compile_layers(student.lm)
    scored = scored_at_random(way.work, shape["vocab_size"])

    def run() -> None:
        update(student, scored, Objective(WEIGHTING), seeds=range(way.work.sequences))

    with chosen(way):
        found = timed(device, run, way.work.tokens, 3 * forward_flops(student.model, way.work))
    expected = estimate(shape, way)
    found |= {
        "estimate_mib": expected,
        "estimate_ratio": round(expected / peak, 3) if (peak := found["memory_peak_mib"]) else None,
        "micro_batch_tokens": student.micro_batch_tokens,
    }
    return found


@contextmanager
def chosen(way: Way) -> Iterator[None]:
    backend = sdpa_kernel(getattr(SDPBackend, way.backend)) if way.backend else nullcontext()
    torch.use_deterministic_algorithms(way.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with backend:
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def estimate(shape: dict[str, int], way: Way) -> float:
    """What doctor expects an update to hold at its peak, MiB; without the student's teacher and CUDA's own."""
    config = Config(
        student=StudentConfig(path="student", gradient_checkpointing=way.checkpointing),
        teacher=TeacherConfig(path="teacher"),
        data=DataConfig(path="data", batch_size=way.work.sequences, max_prompt_tokens=way.work.prompt),
        rollout=HfRolloutConfig(max_tokens=way.work.response),
        scoring=HfScoringConfig(),
        weighting=WEIGHTING,
        optim=OptimConfig(micro_batch_tokens=MICRO_BATCH_TOKENS, autocast=True),
    )
    model = model_config(shape)
    plan = Plan(
        config=config,
        machine=Machine("cuda", "", 1, 80 * 2**30, 80 * 2**30, None, None),
        student=student_model(config, model, "cuda"),
        teacher=teacher_model("teacher", config.teacher, model, "cuda"),
        lengths=lengths(config),
        window=config.weighting.bounds,
        needs_batch=False,
    )
    place = next(place for place in plan.places() if place.stage == "update")
    others = ("teacher", "CUDA")
    return mib(sum(term.bytes for term in place.terms if not term.what.startswith(others)))


def updates(device: torch.device, shape: dict[str, int], ways: list[Way]) -> dict[str, Any]:
    """Every way, each with a student of its own; one that fails leaves the others."""
    found = {}
    for way in ways:
        try:
            found[str(way)] = one_way(device, shape, way)
        except Exception as error:
            found[str(way)] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        torch.compiler.reset()
        empty(device)
    return {"ok": "error" not in found[str(ways[0])], **found}


def kernels(device: torch.device, shape: dict[str, int], work: Work, compiled: bool) -> dict[str, Any]:
    """Where the time of one update goes: milliseconds by operator, on the device where it has its own clock."""
    ways = {"plain": False, "compiled": True} if compiled else {"plain": False}
    return {name: _kernels(device, shape, work, chosen) for name, chosen in ways.items()}


def _kernels(device: torch.device, shape: dict[str, int], work: Work, compiled: bool, most: int = 14) -> dict[str, Any]:
    student = new_student(device, shape)
    if compiled:
        compile_layers(student.lm)
    scored = scored_at_random(work, shape["vocab_size"])

    def run() -> None:
        update(student, scored, Objective(WEIGHTING), seeds=range(work.sequences))

    run()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        run()
    on_device = device.type == "cuda"

    def own(event: Any) -> float:
        return (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1000

    events = [event for event in profiler.key_averages() if on_device is (event.device_type.name != "CPU")]
    events.sort(key=own, reverse=True)
    return {
        "total_ms": round(sum(map(own, events)), 1),
        "by_kernel_ms": {f"{event.key[:110]} x{event.count}": round(own(event), 2) for event in events[:most]},
    }


def scoring(device: torch.device, shape: dict[str, int], works: list[Work], compiled: bool) -> dict[str, Any]:
    """The teacher's pass, in bfloat16."""
    model = make_model(shape, 1, device=device, dtype=torch.bfloat16)
    lm, found = LanguageModel(model, name="teacher"), {}
    teacher = HfTeacher(lm, device)
    for said in ("", ", compiled")[: 1 + compiled]:
        if said:
            compile_layers(lm)
        for work in works:
            rollouts = make_rollouts(work, shape["vocab_size"])
            found[f"{work}{said}"] = timed(
                device,
                lambda given=rollouts: score(teacher, given, WEIGHTING.window(0.0)),
                work.tokens,
                forward_flops(model, work),
            )
    return found


def rollout(device: torch.device, shape: dict[str, int], work: Work) -> dict[str, Any]:
    """`rollout=hf`: decoding waits for memory and for Python, so there is no share of the peak."""
    engine = HfEngine(new_student(device, shape).lm, [NEVER])
    prompts, sampling = make_prompts(work.sequences, work.prompt), Sampling(max_tokens=work.response)
    return timed(device, lambda: engine.generate(prompts, sampling, seed=0, stream=0), work.tokens, times=2)
