"""The plan in words: memory stage by stage, tokens, FLOPs and hours; as findings, tables and plain values."""

from dataclasses import asdict
from typing import Any

from iwopd.config import Config, HfScoringConfig, describe_objective
from iwopd.config.checks import warnings
from iwopd.doctor.costs import Costs
from iwopd.doctor.findings import Report, Section, Table
from iwopd.doctor.lengths import mean_response, steps, steps_in_words
from iwopd.doctor.memory import Place, count, size
from iwopd.doctor.plan import Plan
from iwopd.preflight.paths import scorer_sections

TIGHT = 0.92  # of a memory: above, what is not counted (fragmentation, kernels' workspace) may be too much


def memory_section(plan: Plan, places: list[Place], report: Report) -> None:
    """Every stage with its terms, and whether it fits."""
    section = report.section("Memory, at the second step")
    for model in (plan.student, plan.teacher):
        shape = model.shape
        active = f", {count(shape.active)} of them for each token" if shape.experts else ""
        trained = f", {count(shape.trained)} trained" if 0 < shape.trained < shape.parameters else ""
        section.note(
            f"{shape.name}: {shape.parameters:,} parameters{active}{trained}, {shape.layers} layers"
            + (", tied embeddings" if shape.tied else "")
        )
    for place in places:
        rows = [[term.what, size(term.bytes), term.how] for term in place.terms]
        rows.append(["sum", size(place.total), f"of {size(place.limit)}" if place.limit else ""])
        section.tables.append(Table(f"{place.stage}, {place.where}", ["", "bytes", "how"], rows))
        _judge(plan, place, section)
    _engines(plan, section)
    _divided(plan, places, section)
    report.values["memory"] = [
        {
            "stage": place.stage,
            "where": place.where,
            "limit_bytes": place.limit,
            "total_bytes": place.total,
            "terms": [asdict(term) for term in place.terms],
        }
        for place in places
    ]


def _engines(plan: Plan, section: Section) -> None:
    """Room for keys and values in vLLM's share, and what the student's attention may cost beside the estimate."""
    for key, room, sequence in plan.rooms():
        if room < sequence:
            section.problem(
                f"{key}: {size(max(0.0, room))} are left for keys and values, and one sequence of {plan.context:,} "
                f"tokens takes {size(sequence)}; raise {key}.gpu_memory, or split the model with {key}.tensor_parallel"
            )
        else:
            section.ok(f"{key}: room for {room / sequence:,.0f} sequences of {plan.context:,} tokens at one time")
    if plan.machine.kind == "cuda" and plan.student.computes_in == 4 and plan.student.shape.grouped:
        section.warn(
            "the student computes in float32, for which PyTorch may have no fused attention with grouped heads on a "
            "GPU: heads × tokens² numbers more, not counted here; use optim.autocast=true"
        )


def _divided(plan: Plan, places: list[Place], section: Section) -> None:
    """How few processes would do, by what is divided over them."""
    shards = plan.sharding.shards
    if shards == 1:
        return
    divided = [place for place in places if place.limit and any(term.shards > 1 for term in place.terms)]
    found = [fewest for place in divided if (fewest := place.fewest(TIGHT)) is not None]
    if divided and len(found) == len(divided):
        section.note(
            f"weights, gradients and Adam's moments are divided over {shards} processes; {max(found)} would be the "
            "fewest with room for them beside the rest"
        )


def _judge(plan: Plan, place: Place, section: Section) -> None:
    if place.limit is None:
        section.note(f"{place.stage}: {size(place.total)} of {place.where} beside it")
        return
    said = f"{place.stage}: {size(place.total)} of the {size(place.limit)} of {place.where}"
    if place.total > place.limit:
        section.problem(f"{said}: does not fit; {', '.join(advice(plan, place))}")
    elif place.unknown is not None:
        section.warn(f"{said} without what the pass itself takes: {place.unknown}")
    elif place.total > TIGHT * place.limit:
        section.warn(f"{said}: tight; {', '.join(advice(plan, place))}")
    else:
        section.ok(said)


def advice(plan: Plan, place: Place) -> list[str]:
    """What would make the largest terms smaller, largest first."""
    config, cuda = plan.config, plan.machine.kind == "cuda"
    student, optim = config.student, config.optim
    work = plan.micro_batch(optim.micro_batch_tokens)
    ways: list[tuple[str, str, bool]] = [
        ("activations", "student.gradient_checkpointing=true", not student.gradient_checkpointing),
        ("activations", f"optim.micro_batch_tokens={optim.micro_batch_tokens // 2}", work.rows > 1),
        ("activations", "optim.autocast=true", not optim.autocast and student.dtype == "float32"),
        ("activations", "a smaller rollout.max_tokens", work.rows == 1),
        ("Adam's moments", "parallel=fsdp over several GPUs (doctor.gpus)", cuda and plan.sharding.ranks == 1),
        ("Adam's moments", "more processes", plan.sharding.shards > 1),
        ("Adam's moments", "student.lora.rank=64", not student.lora.rank),
        ("gathered weights", "parallel.gather=bfloat16", plan.sharding.gather == "float32"),
        ("gathered weights", "parallel.reshard=true", not plan.sharding.reshard),
        ("student's vLLM engine", "a smaller rollout.engine.gpu_memory, or rollout=vllm_server", True),
        ("the teacher's likeliest tokens", "a smaller loss.top_k or data.batch_size", True),
        ("the teacher's hidden states", "loss.signal=top_k, or a smaller data.batch_size", True),
        ("prompt log-probs", "a smaller scoring.engine.batch_tokens", True),
        ("keys and values", "a smaller rollout.batch_size, or rollout=vllm", True),
    ]
    hf = isinstance(config.scoring, HfScoringConfig)
    for key, section in scorer_sections(config).items():
        stays = cuda and not section.offload and place.stage != "score"
        ways += [
            (f"{key}'s weights", f"{key}.dtype=bfloat16", section.dtype == "float32"),
            (f"{key}'s weights", f"{key}.offload=true", stays),
            (f"{key}'s weights", "scoring=vllm_server on other GPUs", key != "base"),
            (f"{key}'s weights", "parallel.teacher=sharded", plan.sharding.ranks > 1 and not plan.sharding.teacher),
            (f"{key}'s weights", f"{key}.device=cuda:1", cuda and section.device is None and plan.sharding.ranks == 1),
            (f"{key}'s vLLM engine", "a smaller scoring.engine.gpu_memory, or scoring=vllm_server", True),
            (f"{key}'s pass", "a smaller scoring.batch_tokens", hf),
        ]
    largest = sorted(place.terms, key=lambda term: -term.bytes)[:3]
    chosen = [fix for term in largest for what, fix, useful in ways if useful and term.what.startswith(what)]
    return chosen[:4] or ["use a smaller model or a larger card"]


def cost_section(plan: Plan, found: Costs, report: Report) -> None:
    """Tokens, FLOPs and hours."""
    section, card, doctor = report.section("Tokens, FLOPs and hours"), plan.card, plan.config.doctor
    length = mean_response(plan.config)
    given = "doctor.response_tokens" if doctor.response_tokens else "the longest allowed; say doctor.response_tokens"
    section.note(f"responses of {length:,} tokens on average ({given}), prompts of {plan.lengths.mean_prompt:,.0f}")
    stages = [*found.stages, found.evaluation]
    rows = [
        [cost.stage, count(cost.tokens), f"{cost.flops:.2e}", _time(cost.seconds), cost.how]
        for cost in stages
        if cost.tokens
    ]
    section.tables.append(Table("of one step, and of one evaluation", ["", "tokens", "FLOPs", "time", "how"], rows))
    said = f"the run: {steps_in_words(plan.config)} and {found.evaluations} evaluations, {found.flops:.2e} FLOPs"
    if card is None or found.hours is None:
        section.note(f"{said}; name a card for hours, doctor.card=h100")
    elif plan.machine.kind == "cpu":
        section.note(
            f"{said}, about {found.hours:,.1f} hours on {plan.machine.name}, just measured at "
            f"{card.float32:.2g} TFLOP/s in float32, {card.tflops:.2g} in bfloat16 and {card.bandwidth:.2g} GB/s (a "
            "busy machine measures as a slow one)"
        )
    else:
        section.note(
            f"{said}, {found.hours:,.1f} hours on {plan.machine.name} at {doctor.utilisation:g} of its {card.tflops:g} "
            f"TFLOP/s and {doctor.bandwidth:g} of its {card.bandwidth:g} GB/s"
        )
    report.values["costs"] = {
        "stages": [asdict(cost) for cost in found.stages],
        "evaluation": asdict(found.evaluation),
        "evaluations": found.evaluations,
        "steps": steps(plan.config),
        "flops": found.flops,
        "hours": found.hours,
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:,.1f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"


def summarize(config: Config, section: Section) -> None:
    """The run in a few lines."""
    rollout: Any = config.rollout
    section.ok("the config is valid: every key, type, range and combination was checked")
    for warning in warnings(config):
        section.warn(warning)
    student = config.student
    trains = f"LoRA of rank {student.lora.rank}" if student.lora.rank else "all weights"
    section.note(f"student {student.path} ({student.dtype}, {trains}), teacher {config.teacher.path}")
    section.note(
        f"{describe_objective(config)}; a mean over {config.loss.normalize} tokens; AdamW at {config.optim.lr:g}"
    )
    sequences = config.data.batch_size * rollout.n
    most = config.run.tokens or config.run.steps * sequences * rollout.max_tokens
    section.note(
        f"{steps_in_words(config)} of {sequences:,} rollouts ({config.data.batch_size:,} prompts × {rollout.n}) "
        f"of up to {rollout.max_tokens:,} tokens: {'' if config.run.tokens else 'up to '}{count(most)} tokens"
    )
    if not config.eval.benchmarks:
        section.note("no evaluations, for there is no benchmark: the run will not tell how good the student is")
