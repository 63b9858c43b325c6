"""Memory beside the GPU that trains: the host's, and further GPUs of models and engines that are there or split."""

from collections.abc import Iterator
from typing import Any

from iwopd.config import VllmRolloutConfig, VllmScoringConfig
from iwopd.doctor import memory
from iwopd.doctor.memory import CUDA_CONTEXT, Place, Term
from iwopd.doctor.models import Model
from iwopd.doctor.plan import Plan, weights_of


def elsewhere(plan: Plan) -> Iterator[Place]:
    """Host memory beside GPUs, a GPU that a teacher has for itself, and the other GPUs of an engine of one process."""
    if plan.machine.kind != "cuda":
        return
    yield _host(plan)
    context = Term("CUDA context and libraries", CUDA_CONTEXT, "assumed")
    for scorer in plan.in_transformers:
        device = plan.device_of(scorer)
        if device is not None and device != "cpu":
            terms = [context, weights_of(scorer), plan.pass_of(scorer)]
            yield Place("score", f"GPU {device.removeprefix('cuda:')}", plan.machine.memory, terms)
    if plan.sharding.ranks > 1:  # each engine has GPUs that train
        return
    groups: list[tuple[str, Any, Model]] = [("rollout", plan.config.rollout, plan.student)]
    groups += [("score", plan.config.scoring, scorer.model) for scorer in plan.in_vllm]
    for stage, group, model in groups:
        if isinstance(group, (VllmRolloutConfig, VllmScoringConfig)) and group.engine.tensor_parallel > 1:
            where = f"GPUs 1 to {group.engine.tensor_parallel - 1}"
            terms = [context, *plan.engine(group.engine, model, "vLLM engine")]
            yield Place(stage, where, plan.machine.memory, terms)


def _host(plan: Plan) -> Place:
    """Of one machine, with all its processes."""
    config, terms = plan.config, [Term("Python and libraries", plan.program, "of this process")]
    terms += plan.records()
    for scorer in (*plan.in_transformers, *plan.in_vllm):
        if scorer.section.offload or scorer.section.device == "cpu":
            terms.append(weights_of(scorer))
    if isinstance(config.rollout, VllmRolloutConfig) and config.rollout.sleep:
        each = memory.BYTES[plan.engine_dtype(plan.student)]
        held = plan.student.shape.parameters // config.rollout.engine.tensor_parallel
        terms.append(memory.weights(held, each, "student's engine, asleep"))
    if plan.sharding.local > 1:
        terms = [
            Term(term.what, term.bytes * plan.sharding.local, f"{term.how}, {plan.sharding.local} processes")
            for term in terms
        ]
    return Place("all stages", "host memory", plan.machine.host, terms)
