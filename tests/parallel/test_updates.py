"""Two real processes compute what one does: gradients, weights, metrics; for every loss, weighting, kind of model."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
from support.architectures import VOCABULARY, make
from support.ranks import on_ranks
from torch import Tensor

from iwopd.config import OptimConfig
from iwopd.losses import LOSSES
from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import shard, whole
from iwopd.models.student import Student
from iwopd.numerics import WeightInput
from iwopd.parallel import world
from iwopd.parallel.ranks import Ranks, opened
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Rollout, as_ids, as_logprobs
from iwopd.weighting import SCHEMES
from iwopd.weighting.base import Weighting
from iwopd.weighting.uniform import Uniform

SAME = 1e-6  # relative, float32
LENGTHS = (3, 40, 17, 1, 26, 9)  # uneven, and one of a single token
PLAIN: dict[str, Any] = {"model": "llama", "loss": "policy_gradient", "weighting": "iw"}


def path_of(name: str) -> tuple[object, ...]:
    """What several processes could do differently for a weighting. But for these its weights of a rollout are the same
    wherever and with whatever else it is computed, as test_weighting.py has of every scheme."""
    scheme = SCHEMES[name]()
    windowed = type(scheme).bounds is not Weighting.bounds
    return scheme.needs_batch, windowed, scheme.annealed is None, scheme.measures, scheme.advantage


# The first of every path, beside iw, which the other cases have.
WEIGHTINGS = {path_of(name): name for name in reversed(SCHEMES) if name != "custom"}.values()
CASES: dict[str, dict[str, Any]] = {
    **{
        f"weighting {name}": {"weighting": name, "signal": "top_k" if SCHEMES[name].measures else "auto"}
        for name in WEIGHTINGS
    },
    **{f"loss {name}": {"loss": name} for name in LOSSES},  # policy_gradient: all as in PLAIN
    **{f"model {name}": {"model": name} for name in ("qwen2", "gemma2", "qwen3_moe", "phi", "opt")},
    **{f"top-k {name}": {"loss": name, "signal": "top_k"} for name in LOSSES if name != "policy_gradient"},
    "one rollout for two ranks": {"lengths": (30,)},
    "two updates": {"updates": 2},
    "small micro-batches": {"micro_batch_tokens": 30},
    "checkpointing": {"checkpointing": True},
    "checkpointing, kept gathered": {"checkpointing": True, "reshard": False},
    "kept gathered": {"reshard": False},
    "LoRA": {"lora": 0.0},
    "LoRA with dropout": {"lora": 0.3},
    "LoRA with dropout, checkpointing, reverse KL": {"lora": 0.3, "checkpointing": True, "loss": "reverse_kl"},
    "LoRA on experts": {"lora": 0.0, "model": "qwen3_moe"},
    "a rank with zero weights": {"weighting": "zero on long"},
    "shared prompts": {"samples": 4, "share": True},
    "shared prompts, sharded teacher, small micro-batches": {
        "samples": 4,
        "share": True,
        "teacher": "sharded",
        "micro_batch_tokens": 60,
        "weighting": "prefix_ratio",
    },
    "shared prompts, kept gathered, LoRA": {"samples": 4, "share": True, "reshard": False, "lora": 0.0},
    "sharded teacher": {"teacher": "sharded"},
    "sharded teacher, reverse KL": {"teacher": "sharded", "loss": "reverse_kl"},
}


def rollouts(lengths: Sequence[int], samples: int = 1) -> list[Rollout]:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, VOCABULARY, (4 + place,), generator=generator) for place in range(len(lengths))]
    return [
        Rollout(
            f"p{place}",
            as_ids(prompts[place // samples * samples].numpy()),
            as_ids(torch.randint(0, VOCABULARY, (length,), generator=generator).numpy()),
            as_logprobs((-torch.rand(length, generator=generator)).numpy()),
            "stop",
        )
        for place, length in enumerate(lengths)
    ]


def student_of(case: dict[str, Any], ranks: Ranks | None) -> Student:
    model, adapters = make(case["model"]), None
    if "lora" in case:
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=case["lora"], target_modules="all-linear")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            adapters = peft.get_peft_model(model, settings)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data += 0.1 * torch.randn_like(parameter)
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if adapters is not None:
            model.enable_input_require_grads()
    lm = LanguageModel(model)
    if ranks is not None:
        shard(lm, ranks.mesh)
    optim = OptimConfig(lr=1e-3, grad_clip=0.5)
    reshard, share = case.get("reshard", True), case.get("share", False)
    return Student(lm, optim, case.get("micro_batch_tokens", 80), adapters, reshard=reshard, share_prompts=share)


class ZeroOnLong(Uniform):
    """The costliest micro-batch has no weight, and so one rank has none."""

    def weights(self, given: WeightInput) -> Tensor:
        return (given.lengths < 30)[:, None].float().expand_as(given.mask)


def weighting_of(name: str) -> Any:
    return ZeroOnLong() if name == "zero on long" else SCHEMES[name]()


def trained(case: dict[str, Any], ranks: Ranks | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights after one step, with `first` and `second` moments (of the gradients), and the metrics."""
    case = PLAIN | case
    loss, student = LOSSES[case["loss"]](signal=case.get("signal", "auto"), top_k=16), student_of(case, ranks)
    teacher_model = LanguageModel(make(case["model"], seed=1))
    if ranks is not None and "teacher" in case:
        shard(teacher_model, ranks.mesh, whole_head=True)
    teacher = HfTeacher(teacher_model, torch.device("cpu"), 60, share_prompts=student.share_prompts)
    objective, updates = Objective(weighting_of(case["weighting"]), loss), case.get("updates", 1)
    made = rollouts(case.get("lengths", LENGTHS), case.get("samples", 1))
    needs = objective.needs_student_first(updates) or updates > 1
    scored = score(
        teacher,
        made,
        objective.weighting.window(0.5),
        student=student if needs else None,
        signal=objective.signal,
        objective=objective,
    )
    heads = teacher.heads() if objective.signal.kind == "full" else {}
    seeds = list(range(len(scored)))
    metrics = update(student, scored, objective, seeds=seeds, progress=0.5, updates=updates, teacher_heads=heads)
    state = {name: whole(value.detach()) for name, value in student.model.named_parameters()}
    for name, parameter in student.model.named_parameters():
        for moment in ("exp_avg",):
            if parameter.requires_grad:
                state[f"{name} {moment}"] = whole(student.optimizer.state[parameter][moment])
    return state, metrics


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative, over all tensors of a kind together."""
    assert one.keys() == other.keys()
    worst = 0.0
    for kind in ("exp_avg", ""):
        names = [name for name in one if name.endswith(kind) and (kind or "exp_avg" not in name)]
        gap = sum((one[name] - other[name]).double().square().sum() for name in names)
        worst = max(worst, float((gap / sum(one[name].double().square().sum() for name in names)).sqrt()))
    return worst


def compare_all(replicate: int, names: Sequence[str]) -> dict[str, tuple[float, float, bool]]:
    """For each case: how far weights and metrics are from one process's, and whether a second time is the same bits."""
    torch.set_num_threads(1)
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    mine = {name: trained(CASES[name]) for name in names[rank::size]}
    found = {}
    with opened(replicate=replicate, timeout_s=60, wait_s=60, on_gpu=False) as ranks:
        assert isinstance(ranks, Ranks)
        marker = ["a teacher recognises what it expects by the object"]
        assert ranks.gather(marker)[ranks.rank] is marker
        assert ranks.alone(lambda: [world().alone(lambda: "within"), "alone"]) == ["within", "alone"]
        alone = {name: each for share in ranks.gather(mine) for name, each in share.items()}
        for name in names:
            state, metrics = trained(CASES[name], ranks)
            again, _ = trained(CASES[name], ranks)
            known = alone[name][1]
            gap = max(abs(metrics[key] - known[key]) / max(abs(known[key]), 0.1) for key in known)
            found[name] = (
                distance(alone[name][0], state),
                gap,
                all(torch.equal(state[key], again[key]) for key in state),
            )
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float, bool]]:
    both = on_ranks(2, compare_all, tmp_path_factory.mktemp("ranks"), 1, list(CASES))
    assert both[0] == both[1]
    return both[0]


@pytest.mark.process
@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(found: dict[str, tuple[float, float, bool]], name: str) -> None:
    weights, metrics, repeated = found[name]
    # prefix_mask leaves few tokens, whose gradients nearly cancel: the same rounding is more of what is left.
    assert weights < (5 if name == "weighting prefix_mask" else 1) * SAME
    assert metrics < 1e-5
    assert repeated, "two runs of two processes differ"
