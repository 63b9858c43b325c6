"""The models themselves: do engine and trainer agree, and does a student that is its own teacher learn nothing?"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iwopd import assembly
from iwopd.config import Config, ParityConfig
from iwopd.doctor.findings import Section
from iwopd.doctor.memory import GIB, size
from iwopd.doctor.plan import Plan
from iwopd.doctor.sources import Source
from iwopd.machine import runtime
from iwopd.models.student import Student
from iwopd.numerics import WeightInput
from iwopd.rollout.base import Engine, Sampling
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.parity import check_parity
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout
from iwopd.weighting import Weighting

PROMPTS, TOKENS = 4, 32
# Largest |A| of a student that is its own teacher, nats: rounding of sums made in another order.
SAME = {"float32": 1e-3, "bfloat16": 0.25}


@dataclass(frozen=True)
class Models:
    """Those that are here, and prompts of the run's."""

    student: Source
    scorers: list[Source]
    prompts: list[Prompt]


def live_check(config: Config, models: Models, plan: Plan | None, weighting: Weighting, section: Section) -> None:
    """Load the models and compare; says what was left out, and why."""
    reason = skip_reason(config, models, plan)
    if reason is not None:
        section.note(f"not tried: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, section.guarded():
        _try(config, models, weighting, Path(folder) / "vllm.log", stack, section)


def skip_reason(config: Config, models: Models, plan: Plan | None) -> str | None:
    """Why the models are not loaded; None where they are."""
    if not config.doctor.live:
        return "doctor.live=false"
    everyone = (models.student, *models.scorers)
    absent = [source.name for source in everyone if not source.weights or source.tokenizer is None]
    if absent or plan is None:
        return f"the weights of {' and '.join(absent) or 'a model'} are not here"
    if not models.prompts:
        return "there are no prompts"
    loaded = (plan.student, *(scorer.model for scorer in plan.scorers))
    needed = sum(model.shape.parameters * model.each for model in loaded)
    if needed > config.doctor.live_gib * GIB:
        return f"the weights take {size(needed)}, more than doctor.live_gib={config.doctor.live_gib:g}"
    return None


def _try(
    config: Config, models: Models, weighting: Weighting, log_file: Path, stack: ExitStack, section: Section
) -> None:
    runtime.apply()
    device = assembly.device(config.run.device)
    assert models.student.folder is not None
    prompts = models.prompts[:PROMPTS]
    context = max(len(prompt.ids) for prompt in prompts) + max(TOKENS, config.rollout.max_tokens) + 1
    student = assembly.student(config, models.student.folder, device, context=context)
    section.ok(f"the student loads, on {device}")
    stops = assembly.stop_ids(models.student.key, config.student, models.student.folder, models.student.tokenizer)
    served = assembly.Served(models.student.folder, config.student, context, log_file, stops)
    engine = stack.enter_context(assembly.engine(config, served, student.lm))
    engine.check_logprobs(assembly.sampling(config.rollout), prompts[0])
    rollouts = _parity(config, engine, student, prompts, section)
    for source in models.scorers:
        with section.guarded():
            assert source.folder is not None
            scored = assembly.Served(source.folder, source.section, context, log_file, key=source.name)
            make = assembly.base if source.name == "base" else assembly.teacher
            found = stack.enter_context(make(config, scored, device)).score(rollouts, weighting.window(0.0))
            count = sum(len(record.teacher_logprobs) for record in found)
            section.ok(f"{source.name} scores them: {count} log-probs, {_mean(found):.3f} nats on average")
    _own_teacher(config, models.student, student, rollouts, weighting, section, context)


def _mean(scored: list) -> float:
    values = [value for record in scored for value in record.teacher_logprobs.tolist()]
    return sum(values) / max(1, len(values))


def _parity(config: Config, engine: Engine, student: Student, prompts: list[Prompt], section: Section) -> list[Rollout]:
    """Engine and trainer on the engine's own samples, after a sync; those samples."""
    engine.sync_weights(student, 0)
    limits = assembly.parity(config.rollout) or ParityConfig()
    with section.guarded():
        found = check_parity(engine, student, prompts, limits, config.seed)
        section.ok(
            f"engine and trainer agree: mean gap {found.mean_gap:.2g}, largest {found.max_gap:.2g} nats per token"
            + ("" if engine.has_own_weights else " (the engine samples from the trainer's own weights)")
        )
    tokens = min(TOKENS, config.rollout.max_tokens)
    return engine.generate(prompts, Sampling(max_tokens=tokens), seed=config.seed, stream="doctor")


def _own_teacher(
    config: Config,
    source: Source,
    student: Student,
    rollouts: list[Rollout],
    weighting: Weighting,
    section: Section,
    context: int,
) -> None:
    """The student scored by itself, and updated as in a run: A must be 0 everywhere, and the gradient with it."""
    assert source.folder is not None
    copy = assembly.language_model(
        source.key, config.student, source.folder, student.device, autocast=config.optim.autocast, context=context
    )
    teacher, watched = HfTeacher(copy, student.device), _Watched(weighting)
    objective = Objective(watched, config.loss, config.scoring.student_logprobs)
    signal = objective.signal
    own = score(
        teacher,
        rollouts,
        weighting.window(0.0),
        student=student if objective.needs_student_first(config.optim.updates_per_batch) else None,
        base=teacher if objective.loss.exopd_lambda != 1 else None,
        signal=signal,
        objective=objective,
    )
    heads = teacher.heads() if signal.kind == "full" else None
    found = update(student, own, objective, seeds=range(len(own)), teacher_heads=heads)
    gaps = watched.gaps
    dtype = "bfloat16" if config.optim.autocast else config.student.dtype
    said = (
        f"the student as its own teacher: largest |A| {max(gaps):.2g} nats over {found['tokens/trained']:.0f} tokens, "
        f"reverse KL {abs(found['train/reverse_kl']):.2g}, gradient norm {found['train/grad_norm']:.2g}"
    )
    if max(gaps) > SAME[dtype]:
        section.problem(
            f"{said}, where A should be 0; compare student.attention and dtype, and report the architecture"
        )
    else:
        section.ok(said)


class _Watched(Weighting):
    """A scheme, and the largest |A| of each time it was asked for weights, nats."""

    def __init__(self, scheme: Weighting):
        self.inner, self.gaps = scheme, list[float]()
        self.scheme, self.needs_batch, self.keeps_all = scheme.scheme, scheme.needs_batch, scheme.keeps_all
        self.measures = scheme.measures

    def weights(self, given: WeightInput) -> Tensor:
        """Those of the scheme."""
        self.gaps.append(given.advantages.abs().max().item())
        return self.inner.weights(given)
