"""rollout.horizon: training rollouts end where training does; evaluations and resume know nothing of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.records import plain_rollout
from support.running import SMALL, iwopd, refused, rows, weights, without_times

from iwopd.config import HfRolloutConfig
from iwopd.numerics import WeightInput
from iwopd.rollout.base import Sampling, no_progress
from iwopd.rollout.hf import HfEngine
from iwopd.rollout.horizon import horizon_tokens, running_mean_length
from iwopd.training.objective import Objective
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout
from iwopd.weighting import Weighting
from iwopd.weighting.uniform import Uniform

GROWING = (*SMALL, "weighting=growing_horizon", "eval.greedy=false")


def rollout_of(length: int) -> Rollout:
    return plain_rollout([1], [2] * length)


@pytest.mark.parametrize(
    ("horizon", "end", "power", "progress", "tokens"),
    [
        (None, None, 4.0, 0.5, 80),
        (20, None, 4.0, 1.0, 20),
        (200, None, 4.0, 0.0, 80),
        (0.3, None, 4.0, 0.7, 15),  # of a mean of 50
        (0.31, None, 4.0, 0.0, 16),
        (0.001, None, 4.0, 0.0, 1),
        (0.3, 1.5, 4.0, 0.0, 15),
        (0.3, 1.5, 4.0, 1.0, 75),
        (0.3, 1.3, 2.0, 0.5, 28),  # 0.3 + 1 · 0.25 of 50
        (10, 30, 1.0, 0.5, 20),
        (1, None, 4.0, 0.0, 1),
    ],
)
def test_a_horizon_is_tokens_or_a_share_of_the_mean_length(horizon, end, power, progress, tokens):
    settings = HfRolloutConfig(max_tokens=80, horizon=horizon, horizon_end=end, horizon_power=power)
    assert horizon_tokens(settings, progress, 50.0) == tokens


def test_a_share_without_a_measured_length_is_an_error():
    settings = HfRolloutConfig(max_tokens=80, horizon=0.3)
    with pytest.raises(ValueError, match="lengths of an evaluation"):
        horizon_tokens(settings, 0.0, None)
    assert horizon_tokens(replace(settings, horizon=9.0), 0.0, None) == 9


def test_the_running_length_is_that_of_whole_responses_newer_ones_more():
    first = running_mean_length(None, [rollout_of(10), rollout_of(30)])
    assert first == 20
    assert running_mean_length(first, [rollout_of(40)]) == 30


def test_a_rollout_with_a_horizon_is_the_beginning_of_the_whole_one(tiny_model):
    engine = HfEngine(tiny_model(0), [7], batch_size=3)
    prompts = [Prompt(f"p{index}", [index + 1, 4, 9][: 1 + index % 3], "") for index in range(8)]
    whole, cut = (
        engine.generate(prompts, Sampling(max_tokens=tokens), seed=3, stream=0, progress=no_progress)
        for tokens in (24, 5)
    )
    assert {rollout.finish_reason for rollout in cut} == {"stop", "length"}
    for long, short in zip(whole, cut, strict=True):
        assert short.response_ids.tolist() == long.response_ids[:5].tolist()
        assert short.finish_reason == (long.finish_reason if len(long.response_ids) <= 5 else "length")


class FirstFive(Weighting):
    def weights(self, given: WeightInput) -> torch.Tensor:
        return (given.mask & (given.positions < 5)).float()


def test_uniform_on_cut_rollouts_is_a_window_on_whole_ones(make_rollouts, make_scored, tiny_model, tiny_student):
    """What `first30_horizon` trains on: the gradient of the same tokens of rollouts that were not cut."""
    whole = make_rollouts(6, seed=4)
    cut = [
        replace(item, response_ids=item.response_ids[:5], sampler_logprobs=item.sampler_logprobs[:5]) for item in whole
    ]
    gradients = []
    for rollouts, weighting in ((cut, Uniform()), (whole, FirstFive())):
        student = tiny_student(0)
        student.optimizer.step = lambda student=student: gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        )
        update(student, make_scored(rollouts, tiny_model(1)), Objective(weighting), seeds=range(6))
    assert gradients[1].norm() > 0
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


# ---------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(smoke_models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("horizon") / "growing"
    assert iwopd("train", *GROWING, f"run.dir={folder}") == 0
    return folder


@pytest.mark.process
def test_only_training_rollouts_end_at_the_horizon(finished):
    found = rows(finished / "metrics.jsonl")
    training = [row for row in found if "train/loss" in row]
    horizons = [row["train/horizon"] for row in training]
    lengths = [row["eval/response_length"] for row in found if "eval/accuracy" in row]
    assert horizons[0] == -(-3 * lengths[0] // 10)  # ⌈0.3 · mean⌉: the evaluation before the first step counts
    assert horizons == sorted(horizons)
    assert horizons[0] < horizons[-1] <= 24
    assert all(row["tokens/generated"] <= 8 * row["train/horizon"] for row in training)
    assert training[0]["tokens/trained"] == training[0]["tokens/generated"]
    assert max(lengths) > horizons[0]


@pytest.mark.process
def test_the_preset_keeps_the_horizon_at_30_percent(smoke_models, tmp_path):
    settings = (*SMALL, "run.steps=2", "weighting=first30_horizon", "eval.every=0")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    found = rows(tmp_path / "run" / "metrics.jsonl")
    length = next(row["eval/response_length"] for row in found if "eval/accuracy" in row)
    horizons = [row["train/horizon"] for row in found if "train/loss" in row]
    assert horizons == [-(-3 * length // 10)] * 2
    assert next(row["train/weight_min"] for row in found if "train/loss" in row) == 1


@pytest.mark.process
def test_a_resumed_run_has_the_horizons_of_one_never_interrupted(finished, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000004")
    assert iwopd("train", *GROWING, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(finished / "final")
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(finished / "metrics.jsonl"))


@pytest.mark.cli
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rollout.horizon=0"], "rollout.horizon=0.0: must be above 0"),
        (["rollout.horizon=1.5"], "rollout.horizon=1.5: neither a share below 1 nor a whole number of tokens; use 2"),
        (["rollout.horizon_end=1.0"], "rollout.horizon_end=1.0: there is no horizon to grow from"),
        (["rollout.horizon=0.3", "rollout.horizon_end=0.2"], "rollout.horizon_end=0.2: below rollout.horizon=0.3"),
        (["rollout.horizon=soon"], "rollout.horizon=soon: not a number"),
    ],
)
def test_a_wrong_horizon_is_refused(settings, said, capsys):
    assert said in refused(capsys, "train", *SMALL, *settings)
