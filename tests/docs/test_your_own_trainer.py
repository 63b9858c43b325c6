"""The programs of docs/your-own-trainer.md for other people's trainers, on the numbers of the paper's released code.

Where TRL is installed (`pip install 'iwopd[bench]'`), the class is made from its own, and its own method is asked too.
"""

import json
import sys
import warnings
from collections import defaultdict
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.documents import blocks
from support.paths import GOLDEN
from torch import Tensor
from torch.testing import assert_close

from iwopd.numerics import policy_loss

CASES = json.loads((GOLDEN / "iw_opd_numerics.json").read_text())["cases"]
PROGRAMS = {
    block.text.partition("\n")[0]: block.text for block in blocks("python") if block.text.startswith("# needs ")
}
on_golden = pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed {case['seed']}")


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(case: dict[str, Any]) -> Tensor:
    return torch.arange(len(case["advantages"][0])) < torch.tensor(case["lengths"])[:, None]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """A module of that name, with its packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        made = ModuleType(".".join(parts[:end]))
        vars(made).update(contents if end == len(parts) else {})
        monkeypatch.setitem(sys.modules, made.__name__, made)


def shown(needs: str) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "shown"}
    with warnings.catch_warnings():  # of what other libraries say when they are imported
        warnings.simplefilter("ignore")
        exec(compile(PROGRAMS[needs], "docs/your-own-trainer.md", "exec"), found)
    return found


def test_every_program_that_needs_another_trainer_is_tested_here() -> None:
    assert PROGRAMS.keys() == {"# needs trl", "# needs verl"}


class Logits:
    """Over two tokens, of which the sampled one, token 0, has the case's log-probs."""

    def __init__(self, case: dict[str, Any]):
        logprobs = matrix(case["trainer_logprobs_old"])
        self.mask = mask_of(case)
        self.tokens = torch.zeros(logprobs.shape, dtype=torch.long)
        rest = torch.log1p(-logprobs.exp())
        self.given = torch.stack([logprobs, rest], dim=-1).where(self.mask[..., None], 0.0).requires_grad_()
        self.labels = torch.where(self.mask, self.tokens, -100)
        self.teacher = matrix(case["teacher_logprobs"])

    def loss(self, method: Any, trainer: Any, items: int | None) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to the logits."""
        loss = method(trainer, self.given, self.tokens, self.labels, self.teacher, None, items)
        return loss.detach(), torch.autograd.grad(loss, self.given)[0]


def from_golden(case: dict[str, Any], items: int | None) -> tuple[Tensor, Tensor]:
    """TRL's loss with the weights of the released code: −Σ w A log π_θ / n."""
    with_gradient = Logits(case)
    weights, advantages = matrix(case["iw_weights"]), matrix(case["advantages"])
    student = with_gradient.given.log_softmax(-1)[..., 0]
    summed = -(weights * advantages * student)[with_gradient.mask].sum()
    loss = summed / (with_gradient.mask.sum() if items is None else items)
    return loss.detach(), torch.autograd.grad(loss, with_gradient.given)[0]


@on_golden
@pytest.mark.parametrize("items", [None, 7])
def test_in_trl_it_gives_trls_own_loss(
    case: dict[str, Any], items: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = find_spec("trl") is not None
    if not installed:
        module(monkeypatch, "trl.experimental.iw_opd", IWOPDTrainer=object)
    made = shown("# needs trl")["WeightedTrainer"]
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        temperature=1.0,
        iw_opd_gamma=case["gamma"],
        iw_opd_epsilon=1e-8,
        model=SimpleNamespace(training=True),
        _metrics=metrics,
    )
    ours = Logits(case).loss(made._compute_iw_opd_loss, trainer, items)
    assert_close(ours, from_golden(case, items), rtol=1e-7, atol=1e-12)
    if installed:
        theirs = Logits(case).loss(made.__mro__[1]._compute_iw_opd_loss, trainer, items)
        assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["gamma"] == 0.5], ids=lambda case: f"seed {case['seed']}"
)
def test_in_verl_it_weighs_advantages_and_leaves_the_rest_to_verl(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, Any] = {}

    def vanilla(old: Tensor, new: Tensor, advantages: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, dict]:
        assert options == {"loss_agg_mode": "token-mean", "rollout_is_weights": None}
        return policy_loss(new, old, advantages, mask.bool()).loss, {}

    module(
        monkeypatch,
        "verl.trainer.ppo.core_algos",
        register_policy_loss=lambda name: lambda function: losses.setdefault(name, function),
        get_policy_loss_fn=lambda name: losses[name],
    )
    losses["vanilla"] = vanilla
    shown("# needs verl")
    old, mask = matrix(case["trainer_logprobs_old"]), mask_of(case).long()
    found, _ = losses["iw"](
        old, old, matrix(case["advantages"]), mask, loss_agg_mode="token-mean", rollout_is_weights=None
    )
    wanted = torch.tensor(case["results"]["iw"]["loss_token_mean_on_policy"], dtype=torch.float64)
    assert_close(found, wanted, rtol=1e-7, atol=1e-12)
