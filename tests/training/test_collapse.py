"""The alarm for students that stop ending their answers: its rule, and real runs that collapse and that do not."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.records import plain_rollout
from support.running import iwopd, rows, without_times
from transformers import AutoModelForCausalLM, AutoTokenizer

from iwopd.training.collapse import WINDOW, Context, Endings, Watched, alarm, endings
from iwopd.training.state import State
from iwopd.types import ScoredRollout

ALIKE = Context({"student": (2,), "teacher": (2,)})


def watched(shares: Sequence[float], **changing: Sequence[float | None]) -> Watched:
    """A run of 64 responses a step, of which `shares` ended; what else changes from step to step is named."""
    found = Watched()
    for step, share in enumerate(shares):
        usual: dict[str, Any] = {"length_p50": 30, "length_p90": 40, "limit": 48, "reverse_kl": 2.0, "eos_gap": 0.1}
        here = {name: values[min(step, len(values) - 1)] for name, values in changing.items()}
        found.see(Endings(step=step + 1, responses=64, finished=round(64 * share), **usual | here))
    return found


FALLING = [1.0, 1.0, 1.0, 0.9, 0.6, 0.4, 0.2, 0.1]


def test_the_share_that_ends_falling_by_half_is_an_alarm() -> None:
    found = alarm(watched(FALLING), ALIKE)
    assert found is not None
    assert found.startswith("responses stop ending: 1.00 of them did in steps 1 to 3, 0.23 in steps 6 to 8 (")
    assert "reverse KL 2 → 2 nats per token" in found
    assert alarm(watched([0.8] * 3 + [0.39] * 3), ALIKE) is not None
    assert alarm(watched([0.8] * 3 + [0.42] * 3), ALIKE) is None


@pytest.mark.parametrize(
    ("shares", "changing", "context"),
    [
        ([1.0] * 8, {"length_p50": range(20, 44, 3), "length_p90": range(24, 49, 3)}, ALIKE),
        ([0.05, 0.02, 0.02, 0, 0, 0, 0, 0], {"length_p90": [48]}, ALIKE),
        (FALLING[: 2 * WINDOW - 1], {}, ALIKE),
        ([1.0, 1.0, 1.0, 0.7, 0.7, 0.7], {"length_p90": [40, 40, 40, 48]}, ALIKE),
        ([0.7, 0.7, 0.7, 0.4, 0.4, 0.4], {"length_p50": [48]}, ALIKE),
        ([0.7, 0.7, 0.7, 0.4, 0.4, 0.4], {"length_p50": [40, 40, 40, 48], "reverse_kl": [2, 2, 2, 1]}, ALIKE),
        (FALLING, {}, Context(ALIKE.stop_ids, accuracy=0.2, first_accuracy=0.1)),
    ],
    ids=["lengths grow", "cut from the start", "too few", "some are cut", "pressed from the start", "closer", "right"],
)
def test_what_is_no_alarm(shares: Sequence[float], changing: dict[str, Any], context: Context) -> None:
    assert alarm(watched(shares, **changing), context) is None


def test_responses_that_come_to_be_cut_while_the_student_gets_no_closer_are_an_alarm() -> None:
    given = watched([0.7, 0.7, 0.7, 0.4, 0.4, 0.4], length_p50=[40, 40, 40, 48])
    assert alarm(given, ALIKE)


def test_accuracy_excuses_nothing_once_fewer_end_than_were_right() -> None:
    stale = Context(ALIKE.stop_ids, accuracy=0.6, first_accuracy=0.2)
    assert alarm(watched(FALLING), stale)


def test_chance_is_no_alarm() -> None:
    drawn = numpy.random.default_rng(0)
    given = Watched()
    for step in range(1, 500):
        finished = int(drawn.binomial(8, 0.3))
        given.see(Endings(step, 8, finished, 40, 48, 48, float(drawn.uniform(1, 2)), None))
        assert alarm(given, ALIKE) is None


@pytest.mark.parametrize(
    ("changing", "context", "cause"),
    [
        ({"eos_gap": [9.0]}, Context({"student": (2,), "teacher": (3,)}), "EOS ids that differ: the student ends"),
        ({"eos_gap": [9.0, 9.0, 9.0, None]}, ALIKE, "a teacher that would not stop there either: where"),
        ({"reverse_kl": [2.0, 2.0, 2.0, 1.0]}, ALIKE, "max_tokens too small"),
        ({}, Context(ALIKE.stop_ids, bounded=True), "max_tokens too small"),
        ({}, ALIKE, "a sampled signal without bound"),
        ({}, Context({"student": (2,), "teacher": (2, 3)}), "a sampled signal without bound"),
    ],
)
def test_the_likely_cause(changing: dict[str, Any], context: Context, cause: str) -> None:
    assert f"likely cause: {cause}" in str(alarm(watched(FALLING, **changing), context))


def test_it_is_told_again_only_where_it_gets_worse() -> None:
    given = watched(FALLING)
    assert alarm(given, ALIKE)
    given.restart()
    for step in range(9, 20):
        given.see(Endings(step, 64, 15, 30, 40, 48, 2.0, None))
        assert alarm(given, ALIKE) is None
    for step in range(20, 23):
        given.see(Endings(step, 64, 2, 30, 40, 48, 2.0, None))
    assert alarm(given, ALIKE)


def test_endings_of_records() -> None:
    def record(length: int, reason: str, window: tuple[int, int], teacher: float, own: float | None) -> ScoredRollout:
        size = window[1] - window[0]
        recorded = None if own is None else numpy.full(size, own, numpy.float32)
        return ScoredRollout(
            plain_rollout([1], [5] * length, finish_reason=reason),
            *window,
            numpy.full(size, teacher, numpy.float32),
            trainer_logprobs=recorded,
        )

    scored = [
        record(4, "stop", (0, 4), -3.0, None),  # gap −1 + 3
        record(8, "stop", (6, 8), -3.0, -0.5),  # gap −0.5 + 3
        record(6, "stop", (0, 2), -9.0, None),  # its end was not scored
        record(9, "length", (0, 9), -9.0, None),
    ]
    found = endings(scored, step=3, limit=9, reverse_kl=1.5)
    assert found == Endings(3, 4, 3, 6, 9, 9, 1.5, 2.25)
    assert found.metrics == {
        "train/finished": 0.75,
        "train/length_p50": 6,
        "train/length_p90": 9,
        "train/eos_gap": 2.25,
    }
    assert "train/eos_gap" not in endings(scored[2:], step=3, limit=9, reverse_kl=1.5).metrics


def test_what_it_remembers_survives_a_checkpoint(tmp_path: Path) -> None:
    state = State(step=8, watched=watched(FALLING, eos_gap=[1 / 3, None]))
    state.save(tmp_path / "trainer.json")
    assert State.load(tmp_path / "trainer.json") == state


# ---------------------------------------------------------------------------------------------- real runs

EOS, PAD = 257, 256
RUN = [
    *("+experiment=smoke", "run.steps=12", "run.save_every=0", "run.samples=0", "data.batch_size=16", "eval.every=0"),
    *("eval.greedy=false", "eval.benchmarks.smoke.limit=8", "optim.lr=2e-3", "optim.warmup_steps=0"),
]


@pytest.fixture
def changed(smoke_models: dict[str, Path], tmp_path: Path) -> Callable[..., list[str]]:
    """The smoke pair with one of the two changed, as settings."""

    def make(role: str, change: Callable[[Any, torch.Tensor], None]) -> list[str]:
        folder = tmp_path / role
        shutil.copytree(smoke_models[role], folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        change(model, model.lm_head.weight.data)
        model.save_pretrained(folder)
        return [f"{role}=hf", f"{role}.path={folder}", f"{role}.dtype=float32"]

    return make


def masked(model: Any, head: torch.Tensor) -> None:
    """A teacher that never ends."""
    head[EOS] *= -1


def other_id(model: Any, head: torch.Tensor) -> None:
    """A teacher that ends with another token."""
    head[[EOS, PAD]] = head[[PAD, EOS]]
    model.generation_config.eos_token_id = PAD


def warnings(folder: Path) -> list[str]:
    return [line for line in (folder / "train.log").read_text().splitlines() if "warning:" in line]


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (masked, "likely cause: a teacher that would not stop there either"),
        (other_id, "likely cause: EOS ids that differ: the student ends responses with 257, teacher with 256, 257;"),
    ],
    ids=["masked", "ids"],
)
def test_a_pair_that_collapses_is_told_with_its_cause_and_stopped(change, cause, changed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = [*RUN, *changed("teacher", change), f"run.dir={folder}"]
    assert iwopd("train", *given, "run.on_collapse=stop") == 3
    [warning] = warnings(folder)
    assert cause in warning
    last = (folder / "train.log").read_text().splitlines()[-1]
    state = json.loads(next((folder / "checkpoints").glob("*/trainer.json")).read_text())
    assert f"stopped by run.on_collapse=stop after step {state['step']}/12, saved; resume with: iwopd train" in last
    assert rows(folder / "metrics.jsonl")[-1]["step"] == state["step"] < 12
    assert iwopd("train", *given, "run.on_collapse=ignore", "run.resume=true") == 0
    assert warnings(folder) == [warning]


@pytest.mark.process
@pytest.mark.parametrize("case", ["lengths that grow", "cut from the start"])
def test_a_pair_that_learns_is_not_told(case: str, changed, smoke_models: dict[str, Path], tmp_path: Path) -> None:
    semicolon = AutoTokenizer.from_pretrained(smoke_models["student"]).encode(";", add_special_tokens=False)[0]

    def ends_early(model: Any, head: torch.Tensor) -> None:
        head[EOS] += 0.95 * head[semicolon]

    more = ["rollout.max_tokens=24"] if case == "cut from the start" else changed("student", ends_early)
    folder = tmp_path / "run"
    assert iwopd("train", *RUN, *more, "run.on_collapse=stop", f"run.dir={folder}") == 0
    assert not warnings(folder)
    found = [row for row in rows(folder / "metrics.jsonl") if "train/finished" in row]
    if case == "lengths that grow":
        assert found[-1]["train/length_p50"] > found[0]["train/length_p50"] + 5
    if case == "cut from the start":
        assert max(row["train/finished"] for row in found) < 0.3


@pytest.mark.process
def test_a_run_that_is_resumed_has_not_forgotten_its_first_steps(changed, tmp_path: Path) -> None:
    given = [*RUN, *changed("teacher", masked), "run.save_every=3", "run.keep=0"]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert iwopd("train", *given, f"run.dir={whole}") == 0
    assert warnings(whole)
    shutil.copytree(whole, half)
    shutil.rmtree(half / "final")
    for step in (6, 9, 12):
        shutil.rmtree(half / "checkpoints" / f"step-{step:06d}")
    (half / "train.log").unlink()
    assert iwopd("train", *given, f"run.dir={half}", "run.resume=true") == 0
    assert [line.split("warning:")[1] for line in warnings(half)] == [
        line.split("warning:")[1] for line in warnings(whole)
    ]
    states = [
        json.loads((run / "checkpoints/step-000012/trainer.json").read_text())["watched"] for run in (whole, half)
    ]
    assert states[0] == states[1]
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(whole / "metrics.jsonl"))
