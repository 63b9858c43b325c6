"""Every weighting and every loss trains the smallest pair, each with a signal it can have, and says so in words."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from support.composing import composed
from support.running import iwopd, rows

from iwopd.assembly.training import training_run
from iwopd.commands.train import checked_folder
from iwopd.config.objective import describe_objective
from iwopd.launch import config_folder
from iwopd.preflight.checks import check_inputs
from iwopd.runs.console import Display
from iwopd.runs.interrupts import Interrupts
from iwopd.training.loop import Loop
from iwopd.training.objective import Objective
from iwopd.training.run import TrainingRun
from iwopd.training.schedule import Schedule
from iwopd.training.state import State

pytestmark = pytest.mark.cli

# One step, and nothing but the step.
STEP = (
    *("+experiment=smoke", "run.steps=1", "run.save_every=0", "run.samples=0", "benchmark=[]", "eval.every=0"),
    *("data.batch_size=4", "data.limit=8", "rollout.max_tokens=16"),
)
NEEDS = {
    "custom": ["weighting.path=iwopd.numerics:iw_surrogate_weights"],
    "first30_horizon": ["rollout.horizon=8"],
    "growing_horizon": ["rollout.horizon=8", "rollout.horizon_end=16"],
    **{f"{rule}_horizon": ["rollout.stop_every=4"] for rule in ("drift", "agreement", "random")},
}
TOP_K = "the teacher's 8 likeliest tokens and a bucket for the rest"
LOSSES = {
    ("loss=reverse_kl", "loss.signal=top_k", "loss.top_k=8"): f"reverse KL over {TOP_K}",
    ("loss=forward_kl", "loss.skew=0.1"): "skewed (α = 0.1) forward KL over the whole vocabulary",
    ("loss=jsd", "loss.signal=top_k", "loss.top_k=8", "loss.tail=renormalize"): (
        "Jensen-Shannon divergence (β = 0.5) over the teacher's 8 likeliest tokens, renormalised to them"
    ),
    ("loss.signal=top_k", "loss.top_k=8", "loss.baseline=kl", "loss.shape=soft_log"): (
        "policy gradient on the sampled tokens' log-ratio (reverse KL, estimated from one token), as "
        "sign(A)·log(1 + |A|), with KL(student ‖ teacher) as baseline"
    ),
    ("loss=reverse_kl", "loss.entropy_gate=0.1"): (
        "reverse KL over the whole vocabulary, plus forward KL over the teacher's 16 likeliest tokens where its "
        "entropy is above 0.1 nats"
    ),
}
SAMPLED = ("loss=policy_gradient",)
WEIGHTINGS = sorted(file.stem for file in (config_folder() / "weighting").glob("*.yaml"))


PAIRS = {**dict(zip(WEIGHTINGS, cycle(LOSSES))), "fixed_negative": SAMPLED}  # it has an advantage of its own


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, smoke_models: object) -> Iterator[TrainingRun]:
    """A run that could begin: its models, engine and prompts serve the steps of all weightings."""
    config = composed(*STEP, f"run.dir={tmp_path_factory.mktemp('runs') / 'run'}")
    with Interrupts() as interrupts, Display(shown=False) as display, ExitStack() as stack:
        yield training_run(config, check_inputs(config), checked_folder(config), display, interrupts, stack)


@pytest.mark.process
@pytest.mark.parametrize(("weighting", "loss"), PAIRS.items(), ids=PAIRS)
def test_every_weighting_trains_with_one_loss_or_another(
    weighting: str, loss: tuple[str, ...], opened: TrainingRun
) -> None:
    config = composed(*STEP, f"weighting={weighting}", *NEEDS.get(weighting, []), *loss)
    parts = replace(opened.components, objective=Objective.of(config))
    student = parts.student
    before = [weight.detach().clone() for weight in student.parameters()]
    loop = Loop(config, parts, Schedule.of(config), State(), opened.stages, opened.interrupts)
    loop.step()
    assert all(math.isfinite(value) for value in loop.metrics.values())
    assert loop.metrics["train/grad_norm"] > 0
    assert not all(map(torch.equal, before, student.parameters()))
    said, _, by = describe_objective(config).partition(", weighted by ")
    assert LOSSES.get(loss, "policy gradient") in said
    assert by == config.weighting.name


@pytest.mark.process
@pytest.mark.parametrize("loss", [*LOSSES][:2] + [*LOSSES][3:], ids=lambda loss: " ".join(loss))
def test_losses_train_with_several_updates_of_adapters(
    loss: tuple[str, ...], tmp_path: Path, smoke_models: object
) -> None:
    run, more = tmp_path / "run", ("optim.updates_per_batch=2", "student.lora.rank=2", "student.lora.dropout=0.1")
    assert iwopd("train", *STEP, "weighting=select_verify", *loss, *more, f"run.dir={run}") == 0
    [metrics] = [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert all(math.isfinite(value) for value in metrics.values())
