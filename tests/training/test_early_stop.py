"""rollout.stop_early: which responses end while others are still being written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from numpy.testing import assert_allclose
from support.running import SMALL, iwopd, refused, rows

from iwopd.config import HfRolloutConfig
from iwopd.config.horizon import weighted_tokens
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import HfTeacher
from iwopd.training.early_stop import RULES, EarlyStop
from iwopd.types import Prompt, Rollout, ScoredRollout
from iwopd.weighting.first_k import FirstK
from iwopd.weighting.prefix_mask import PrefixMask
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

EVERY, LONGEST, EOS = 4, 14, 7
PROMPTS = [Prompt(f"p{size}", list(range(1, 1 + size)), "") for size in (2, 5, 3, 6)]


class Mute(Teacher):
    """Must not be asked."""

    def score(self, *_: Any, **__: Any) -> list[ScoredRollout]:
        raise AssertionError("asked")


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., LanguageModel]) -> tuple[LanguageModel, HfTeacher]:
    return tiny_model(0), HfTeacher(tiny_model(1), torch.device("cpu"))


def generated(models: tuple[LanguageModel, HfTeacher], rule: str, keep: float = 0.5, seed: int = 3) -> list[Rollout]:
    student, teacher = models
    settings = HfRolloutConfig(stop_early=rule, stop_every=EVERY, stop_keep=keep)
    sampling = Sampling(n=3, max_tokens=LONGEST)
    asked = Mute() if rule == "random" else teacher
    return EarlyStop(HfEngine(student, [EOS]), asked, settings).generate(PROMPTS, sampling, seed=seed, stream=2)


def gaps(models: tuple[LanguageModel, HfTeacher], rollouts: Sequence[Rollout]) -> list[Any]:
    """|A_t| of each response."""
    scored = models[1].score(rollouts, lambda length: (0, length))
    return [numpy.abs(each.teacher_logprobs - each.rollout.sampler_logprobs) for each in scored]


@pytest.mark.parametrize("rule", RULES)
def test_a_response_in_pieces_is_the_students(rule: str, models: tuple[LanguageModel, HfTeacher]) -> None:
    rollouts = generated(models, rule)
    assert [(each.prompt_id, each.sample) for each in rollouts] == [(p.id, n) for p in PROMPTS for n in range(3)]
    windows = [(0, len(each.response_ids)) for each in rollouts]
    with torch.no_grad():
        own = models[0].token_logprobs(collate_tokens(rollouts, windows))
    assert_allclose(numpy.concatenate([each.sampler_logprobs for each in rollouts]), own, atol=1e-5)
    for each in rollouts:
        assert (each.finish_reason == "stop") == (each.response_ids[-1] == EOS)
        assert EOS not in each.response_ids[:-1]
    assert {len(each.response_ids) for each in rollouts if each.finish_reason == "length"} <= {4, 8, 12, LONGEST}
    assert rollouts == generated(models, rule), "the same seed gives the same"
    assert rollouts != generated(models, rule, seed=4)


@pytest.mark.parametrize("rule", RULES)
def test_after_each_piece_a_share_of_those_under_way_is_continued(
    rule: str, models: tuple[LanguageModel, HfTeacher]
) -> None:
    rollouts = generated(models, rule)
    disagreement = gaps(models, rollouts)
    for written in (4, 8, 12):
        running = [
            place
            for place, each in enumerate(rollouts)
            if len(each.response_ids) > written or (len(each.response_ids), each.finish_reason) == (written, "length")
        ]
        assert running
        kept = [place for place in running if len(rollouts[place].response_ids) > written]
        assert len(kept) == -(-len(running) // 2)
        ended = [place for place in running if place not in kept]
        if rule == "drift" and ended:
            assert max(disagreement[i][:written].sum() for i in kept) <= min(disagreement[i].sum() for i in ended)
        if rule == "agreement" and ended:
            last = {place: disagreement[place][written - EVERY : written].sum() for place in running}
            assert min(last[place] for place in kept) >= max(last[place] for place in ended)


def test_all_are_continued_where_the_share_is_1(models: tuple[LanguageModel, HfTeacher]) -> None:
    rollouts = generated(models, "drift", keep=1.0)
    assert all(len(each.response_ids) == LONGEST or each.finish_reason == "stop" for each in rollouts)


def test_after_which_token_none_has_weight() -> None:
    assert weighted_tokens(FirstK(k=5), 0.0, 24) == 5
    assert weighted_tokens(FirstK(k=30), 0.0, 24) == 24
    for weighting in (Uniform(), PrefixMask(), *(Window(side=side, fraction=0.3) for side in ("first", "last"))):
        assert weighted_tokens(weighting, 0.0, 24) == 24, weighting


@pytest.mark.process
def test_what_no_weight_would_fall_on_is_not_written(tmp_path: Path, smoke_models: object) -> None:
    """Nothing else changes: not the loss, not the gradient."""
    found = []
    for rule in ("none", "weightless"):
        settings = (*SMALL, "run.steps=1", "run.save_every=0", "eval.every=0", "weighting=first_k", "weighting.k=5")
        assert iwopd("train", *settings, f"rollout.stop_early={rule}", f"run.dir={tmp_path / rule}") == 0
        found += [row for row in rows(tmp_path / rule / "metrics.jsonl") if "train/loss" in row]
    whole, cut = found
    assert cut["tokens/generated"] == cut["tokens/trained"] == whole["tokens/trained"] < whole["tokens/generated"]
    for key in ("train/loss", "train/grad_norm", "train/reverse_kl"):
        assert cut[key] == pytest.approx(whole[key], rel=1e-5)


@pytest.mark.cli
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rollout.stop_early=weightless"], "rollout.stop_early=weightless: with weighting=iw a token of any response"),
        (["rollout.stop_early=weightless", "weighting=first30"], "use weighting=first_k, or rollout.horizon"),
        (
            ["rollout=vllm_server", "rollout.urls=[http://here:1]", "rollout.stop_early=drift", "rollout.ahead=1"],
            "rollout.stop_early=drift: is decided piece by piece",
        ),
        (["rollout.stop_early=soon"], "rollout.stop_early=soon: "),
        (["rollout.stop_keep=0"], "rollout.stop_keep=0.0: must be above 0"),
        (["rollout.stop_every=0"], "rollout.stop_every=0: must be"),
    ],
)
def test_a_wrong_rule_is_refused(settings: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "train", *SMALL, *settings)
