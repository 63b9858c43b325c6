"""Tokens, FLOPs and hours of a run, from its plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from iwopd import assembly
from iwopd.config import HfRolloutConfig, VllmRolloutConfig, VllmServerRolloutConfig, VllmServerScoringConfig
from iwopd.doctor.compute import Cost, decode_seconds, matmul_seconds
from iwopd.doctor.lengths import mean_response, steps
from iwopd.doctor.memory import count
from iwopd.doctor.models import Model
from iwopd.doctor.plan import Plan
from iwopd.doctor.run import PROGRESS
from iwopd.training.schedule import Schedule


@dataclass(frozen=True)
class Costs:
    """Of one step, of one evaluation, and of the run.

    Attributes:
        evaluations: how many there are.
        hours: of the run; None where the card is not known.
    """

    stages: list[Cost]
    evaluation: Cost
    evaluations: int
    hours: float | None
    flops: float


def costs(plan: Plan, problems: int) -> Costs:
    """What a run costs.

    Args:
        problems: of all benchmarks together.
    """
    config, prompt, doctor = plan.config, plan.lengths.mean_prompt, plan.config.doctor
    response = mean_response(config)
    start, stop = _mean_window(plan, response)
    sequences = config.data.batch_size * config.rollout.n
    stages = [_decoding(plan, "rollout", sequences, response)]
    scored = sequences * (stop - start)
    card, (utilisation, _), ranks = plan.card, plan.shares, plan.sharding.ranks

    def passes(stage: str, model: Model, times: int, words: str, gpus: int = ranks, asked: float = prompt) -> Cost:
        read = sequences * (asked + stop)
        flops = times * model.shape.forward(read, scored, asked + stop)
        how = f"{words} × {count(model.shape.active)} × {count(read)} tokens, and attention"
        seconds = matmul_seconds(flops, card, utilisation, gpus, model.computes_in)
        return Cost(stage, read, flops, seconds, how + _on(gpus))

    # A problem has one teacher: the plan is for the largest of several.
    teachers = [scorer.model for scorer in plan.scorers if scorer.key != "base"]
    scoring = config.scoring
    gpus = len(scoring.urls) if isinstance(scoring, VllmServerScoringConfig) else ranks
    largest = max(teachers, key=lambda teacher: teacher.shape.active)
    stages.append(passes("score", largest, 1, "2", gpus, plan.lengths.mean_taught))
    stages += [passes("score by base", each.model, 1, "2") for each in plan.scorers if each.key == "base"]
    if plan.scores_itself:
        stages.append(passes("score itself", plan.student, 1, "2"))
    # Forward, twice that for backward, once more where layers are recomputed, and once without adapters' dropout.
    times = (
        3 + bool(config.student.gradient_checkpointing) + bool(config.student.lora.rank and config.student.lora.dropout)
    )
    stages.append(passes("update", plan.student, times, f"{2 * times}"))

    evaluated = min(doctor.response_tokens or plan.lengths.evaluated, plan.lengths.evaluated)
    samples = (config.eval.n or config.eval.k) + (1 if config.eval.greedy else 0)
    evaluation = _decoding(plan, "evaluation", problems * samples, evaluated)
    planned = steps(config)
    evaluations = Schedule.of(config).evaluations(planned)
    seconds = [cost.seconds for cost in stages]
    hours = None
    if evaluation.seconds is not None and all(part is not None for part in seconds):
        step = step_seconds([part or 0.0 for part in seconds], config.rollout.ahead)
        hours = (planned * step + evaluations * evaluation.seconds) / 3600
    flops = planned * sum(cost.flops for cost in stages) + evaluations * evaluation.flops
    return Costs(stages, evaluation, evaluations, hours, flops)


def step_seconds(stages: Sequence[float], ahead: int) -> float:
    """Of a step, from those of its stages, rollouts first: with `rollout.ahead` these run beside all others."""
    rollout, *others = stages
    return max(rollout, sum(others)) if ahead else rollout + sum(others)


def _mean_window(plan: Plan, length: int) -> tuple[float, float]:
    """The window of a response of that length, averaged over the training."""
    found = [plan.window(length, at) for at in PROGRESS]
    return tuple(sum(edge) / len(found) for edge in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def _decoding(plan: Plan, stage: str, sequences: int, response: float) -> Cost:
    """Answers of the student: bound by arithmetic or by memory, whichever takes longer."""
    config, shape, card, prompt = plan.config, plan.student.shape, plan.card, plan.lengths.mean_prompt
    tokens = sequences * response
    flops = shape.forward(sequences * (prompt + response), tokens, prompt + response)
    how = f"2 × {count(shape.active)} × {count(sequences * (prompt + response))} tokens, and attention"
    if card is None or not sequences:
        return Cost(stage, tokens, flops, None if card is None else 0.0, how)
    gpus, concurrent, engines = 1, sequences, 1
    rollout, ranks = config.rollout, plan.sharding.ranks
    if isinstance(rollout, VllmRolloutConfig):
        gpus, concurrent = rollout.engine.tensor_parallel, rollout.engine.sequences
        engines = max(1, ranks // gpus)
        for key, room, longest in plan.rooms():
            if key == "rollout.engine":  # of sequences that are half written, on average
                concurrent = min(concurrent, int(room / longest * plan.context / (prompt + response / 2)))
    elif isinstance(rollout, HfRolloutConfig):
        concurrent, engines = rollout.batch_size, ranks
    elif isinstance(rollout, VllmServerRolloutConfig):
        gpus, concurrent = max(1, len(rollout.urls)), rollout.http.connections * max(1, len(rollout.urls))
    each = 2 if assembly.engine_dtype(config, getattr(rollout, "dtype", None)) == "bfloat16" else 4
    weights, cache = shape.parameters * each, shape.cache
    each_engine, (utilisation, share) = -(-sequences // engines), plan.shares
    bound = decode_seconds(each_engine, concurrent, response, prompt, weights, cache, card, share) / gpus
    computed = matmul_seconds(flops, card, utilisation, gpus * engines, each) or 0.0
    if bound > computed:
        how = (
            f"{min(concurrent, each_engine)} at a time, each token reads {weights / 1e9:.1f} GB of weights and the "
            f"cache at {share:g} × {card.bandwidth:.3g} GB/s"
        )
    return Cost(stage, tokens, flops, max(bound, computed), how + _on(gpus * engines))


def _on(gpus: int) -> str:
    return f", on {gpus} GPUs" if gpus > 1 else ""
