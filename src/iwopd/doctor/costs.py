"""Tokens, FLOPs and hours of a run, from its plan."""

from dataclasses import dataclass

from iwopd import assembly
from iwopd.config import HfRolloutConfig, VllmRolloutConfig, VllmServerRolloutConfig, VllmServerScoringConfig
from iwopd.doctor.compute import Cost, Shape, decode_seconds, matmul_seconds
from iwopd.doctor.lengths import mean_response, steps
from iwopd.doctor.memory import count
from iwopd.doctor.plan import PROGRESS, Plan
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
    config, shape = plan.config, plan.student.shape
    prompt, doctor = plan.lengths.mean_prompt, config.doctor
    response = mean_response(config)
    start, stop = _mean_window(plan, response)
    sequences = config.data.batch_size * config.rollout.n
    stages = [_decoding(plan, "rollout", sequences, response)]
    read, scored = sequences * (prompt + stop), sequences * (stop - start)
    card, utilisation, ranks = plan.machine.card, doctor.utilisation, plan.sharding.ranks

    def passes(stage: str, model: Shape, times: int, words: str, gpus: int = ranks) -> Cost:
        flops = times * model.forward(read, scored, prompt + stop)
        how = f"{words} × {count(model.active)} × {count(read)} tokens, and attention"
        return Cost(stage, read, flops, matmul_seconds(flops, card, utilisation, gpus), how + _on(gpus))

    # A problem has one teacher: the plan is for the largest of several.
    teachers = [scorer.model.shape for scorer in plan.scorers if scorer.key != "base"]
    scoring = config.scoring
    gpus = len(scoring.urls) if isinstance(scoring, VllmServerScoringConfig) else ranks
    stages.append(passes("score", max(teachers, key=lambda teacher: teacher.active), 1, "2", gpus))
    stages += [passes("score by base", each.model.shape, 1, "2") for each in plan.scorers if each.key == "base"]
    if plan.scores_itself:
        stages.append(passes("score itself", shape, 1, "2"))
    # Forward, twice that for backward, once more where layers are recomputed, and once without adapters' dropout.
    times = (
        3 + bool(config.student.gradient_checkpointing) + bool(config.student.lora.rank and config.student.lora.dropout)
    )
    stages.append(passes("update", shape, times, f"{2 * times}"))

    evaluated = min(doctor.response_tokens or plan.lengths.evaluated, plan.lengths.evaluated)
    samples = (config.eval.n or config.eval.k) + (1 if config.eval.greedy else 0)
    evaluation = _decoding(plan, "evaluation", problems * samples, evaluated)
    planned = steps(config)
    evaluations = Schedule.of(config).evaluations(planned)
    seconds = [cost.seconds for cost in stages]
    hours = None
    if evaluation.seconds is not None and all(part is not None for part in seconds):
        hours = (planned * sum(part or 0.0 for part in seconds) + evaluations * evaluation.seconds) / 3600
    flops = planned * sum(cost.flops for cost in stages) + evaluations * evaluation.flops
    return Costs(stages, evaluation, evaluations, hours, flops)


def _mean_window(plan: Plan, length: int) -> tuple[float, float]:
    """The window of a response of that length, averaged over the training."""
    found = [plan.window(length, at) for at in PROGRESS]
    return tuple(sum(edge) / len(found) for edge in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def _decoding(plan: Plan, stage: str, sequences: int, response: float) -> Cost:
    """Answers of the student: bound by arithmetic or by memory, whichever takes longer."""
    config, shape, card, prompt = plan.config, plan.student.shape, plan.machine.card, plan.lengths.mean_prompt
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
    elif isinstance(rollout, HfRolloutConfig):
        concurrent, engines = rollout.batch_size, ranks
    elif isinstance(rollout, VllmServerRolloutConfig):
        gpus, concurrent = max(1, len(rollout.urls)), rollout.http.connections * max(1, len(rollout.urls))
    each = 2 if assembly.engine_dtype(config, getattr(rollout, "dtype", None)) == "bfloat16" else 4
    weights, cache = shape.parameters * each, shape.cache
    each_engine = -(-sequences // engines)
    bound = (
        decode_seconds(each_engine, concurrent, response, prompt, weights, cache, card, config.doctor.bandwidth) / gpus
    )
    computed = matmul_seconds(flops, card, config.doctor.utilisation, gpus * engines) or 0.0
    if bound > computed:
        how = (
            f"{min(concurrent, each_engine)} at a time, each token reads {weights / 1e9:.1f} GB of weights and the "
            f"cache at {config.doctor.bandwidth:g} × {card.bandwidth:g} GB/s"
        )
    return Cost(stage, tokens, flops, max(bound, computed), how + _on(gpus * engines))


def _on(gpus: int) -> str:
    return f", on {gpus} GPUs" if gpus > 1 else ""
