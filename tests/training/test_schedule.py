"""The schedule: when a run evaluates, saves and ends, how far it is, and its learning rate, all by hand."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.composing import composed
from support.records import plain_rollout

from iwopd.config import OptimConfig
from iwopd.evaluation.evaluate import Benchmark, evaluate
from iwopd.evaluation.grading import ExactGrader
from iwopd.rollout.base import Sampling
from iwopd.training.schedule import Position, Schedule, depending_on_the_end
from iwopd.types import Prompt


def walked(schedule: Schedule, generated: list[int]) -> list[Position]:
    """The positions before each step, and the last, of a run whose steps generate so many tokens."""
    at, found = Position(), []
    for tokens in generated:
        found.append(Position(at.step, at.tokens, at.warmup_tokens))
        schedule.advance(at, tokens)
    return [*found, at]


def rates(schedule: Schedule, generated: list[int]) -> list[float]:
    """The learning rate of every update of such a run."""
    each = schedule.optim.updates_per_batch
    return [
        schedule.learning_rate(at, at.step * each + index)
        for at in walked(schedule, generated)[:-1]
        for index in range(each)
    ]


# ---------------------------------------------------------------------------------------------- learning rate

SHARES = {
    "constant": [1, 1, 1, 1, 1],
    "linear": [1, 0.8, 0.6, 0.4, 0.2],
    "cosine": [(1 + math.cos(math.pi * done)) / 2 for done in (0, 0.2, 0.4, 0.6, 0.8)],
}


@pytest.mark.parametrize("decay", SHARES)
def test_the_rate_rises_to_its_peak_and_then_falls(decay: str) -> None:
    optim = OptimConfig(lr=0.3, schedule=decay, warmup_steps=3)
    expected = [0.1, 0.2, 0.3, *(0.3 * share for share in SHARES[decay])]
    assert rates(Schedule(8, optim=optim), [1] * 8) == pytest.approx(expected, rel=1e-12)
    assert rates(Schedule(8, 80, optim=optim), [10] * 8) == pytest.approx(expected, rel=1e-12)


def test_without_a_warm_up_the_first_update_has_the_peak() -> None:
    optim = OptimConfig(lr=0.3, schedule="linear", warmup_steps=0)
    assert rates(Schedule(3, optim=optim), [1] * 3) == pytest.approx([0.3, 0.2, 0.1], rel=1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_falls_to_the_share_that_is_asked_for(decay: str) -> None:
    optim = OptimConfig(lr=0.5, schedule=decay, final_lr=0.2)
    schedule = Schedule(1000, optim=optim)
    found = rates(schedule, [1] * 1000)
    assert found[0] == 0.5
    assert found == sorted(found, reverse=True)
    assert found[500] == pytest.approx(0.5 * 0.6)  # half of the fall, linear or cosine
    assert schedule.learning_rate(Position(1000), 1000) == pytest.approx(0.1)


def test_warm_up_and_decay_count_updates_where_a_batch_has_several() -> None:
    optim = OptimConfig(lr=1.0, schedule="linear", warmup_steps=3, updates_per_batch=2)
    expected = [1 / 3, 2 / 3, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates(Schedule(4, optim=optim), [1] * 4) == pytest.approx(expected, rel=1e-12)


def test_a_budget_counts_the_tokens_from_where_the_warm_up_ends() -> None:
    """Update 3, in the second batch, is the first after the warm-up: 100 tokens came before it, 400 follow."""
    optim = OptimConfig(lr=1.0, schedule="linear", warmup_steps=3, updates_per_batch=2)
    expected = [1 / 3, 2 / 3, 1, 1, 0.9, 0.9, 0.4, 0.4]
    assert rates(Schedule(1, 500, optim=optim), [100, 40, 200, 160]) == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------------------------- progress


def test_progress_is_0_at_the_first_step_and_1_at_the_last() -> None:
    assert [Schedule(4).progress(Position(step)) for step in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert [Schedule(1).progress(Position(step)) for step in (0, 1)] == [0, 1]
    assert Schedule(0).progress(Position()) == 0


def test_progress_by_tokens() -> None:
    """Before step 2, 100 of 1000 tokens are there, and 900 if the last step has 100; before step 3, steps have 200."""
    schedule = Schedule(3, 1000)
    found = [schedule.progress(at) for at in walked(schedule, [100, 300, 500, 150])]
    assert found == pytest.approx([0, 100 / 900, 400 / 800, 1, 1])


@given(st.integers(1, 40), st.integers(1, 1000), st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 50))
def test_equal_steps_of_a_budget_are_those_of_as_many_steps(steps: int, tokens: int, decay: str, warmup: int) -> None:
    optim = OptimConfig(lr=0.1, schedule=decay, warmup_steps=warmup, final_lr=0.1)
    counted, budget = Schedule(steps, optim=optim), Schedule(7, steps * tokens, optim=optim)
    for at in walked(budget, [tokens] * steps):
        assert budget.progress(at) == pytest.approx(counted.progress(at), abs=1e-12)
        assert budget.ended(at) == counted.ended(at)
        assert budget.learning_rate(at, at.step) == pytest.approx(counted.learning_rate(at, at.step), abs=1e-12)


@given(st.lists(st.integers(50, 100), min_size=2, max_size=40), st.integers(1, 50))
def test_whatever_its_steps_generate_a_budget_goes_from_0_to_nearly_1(generated: list[int], short: int) -> None:
    schedule = Schedule(1, sum(generated) - short)
    assume(sum(generated[:-1]) < sum(generated) - short)
    positions = walked(schedule, generated)
    found = [schedule.progress(at) for at in positions]
    assert [schedule.ended(at) for at in positions] == [False] * len(generated) + [True]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-2] >= 1 - 50 / sum(generated[:-1])  # 50: by how much the last step is larger than the mean at most
    assert found[-1] == 1


# ---------------------------------------------------------------------------------------------- when


def test_a_run_ends_with_its_last_step_or_its_last_token() -> None:
    assert [Schedule(3).ended(Position(step, 10**9)) for step in (0, 2, 3)] == [False, False, True]
    assert [Schedule(3, 100).ended(Position(9, tokens)) for tokens in (99, 100, 101)] == [False, True, True]


def test_when_it_evaluates_and_saves() -> None:
    def when(schedule: Schedule) -> tuple[list[int], list[int], list[int]]:
        positions = [Position(step) for step in range(schedule.steps + 1)]
        asked = (schedule.evaluates, schedule.evaluates_regularly, schedule.saves)
        first, second, third = ([at.step for at in positions if ask(at)] for ask in asked)
        return first, second, third

    assert when(Schedule(5, None, 2, 3)) == ([0, 2, 4, 5], [0, 2, 4], [3, 5])
    assert when(Schedule(5, None, 0, 0)) == ([0, 5], [0], [5])
    assert when(Schedule(5, None, None, 1)) == ([], [], [1, 2, 3, 4, 5])
    assert when(Schedule(0, None, 2, 2)) == ([0], [0], [])


@given(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 12)), st.integers(0, 12))
def test_how_often_is_counted_as_it_is_done(steps: int, evaluate: int | None, save: int) -> None:
    schedule = Schedule(steps, None, evaluate, save)
    positions = [Position(step) for step in range(steps + 1)]
    assert schedule.evaluations(steps) == sum(map(schedule.evaluates, positions))
    assert schedule.checkpoints(steps) == sum(map(schedule.saves, positions))


def test_the_steps_of_a_budget() -> None:
    assert [Schedule(5).expected_steps(100), Schedule(5, 1000).expected_steps(100)] == [5, 10]
    assert Schedule(5, 1001).expected_steps(100) == 11


def test_a_position_in_words() -> None:
    assert Schedule(12).said(Position(7, 12345)) == "step 7/12"
    assert Schedule(12, 15000).said(Position(7, 12345)) == "step 7, 12.3 k of 15 k tokens"
    assert Schedule(12, 2_500_000).said(Position(7, 999)) == "step 7, 999 of 2.5 M tokens"
    assert Schedule(12).extent(Position(7, 12345)) == (7, 12, "steps")
    assert Schedule(12, 15000).extent(Position(7, 12345)) == (12345, 15000, "tokens")


# ---------------------------------------------------------------------------------------------- from the config


def test_it_is_made_from_the_config() -> None:
    config = composed("run.steps=9", "run.save_every=4", "eval.every=3", "optim.schedule=cosine")
    assert Schedule.of(config) == Schedule(9, None, 3, 4, config.optim)
    assert Schedule.of(composed("run.tokens=77", "benchmark=[]")).tokens == 77
    assert Schedule.of(composed("benchmark=[]")).evaluate_every is None


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], []),
        (["optim.warmup_steps=7", "weighting=first30_horizon"], []),
        (["optim.schedule=linear"], ["optim.schedule=linear"]),
        (["optim.schedule=cosine", "optim.final_lr=1"], []),
        (["weighting=prefix_mask"], ["weighting.scheme=prefix_mask"]),
        (["weighting=prefix_boost", "weighting.start=1"], []),
        (["weighting=growing_horizon"], ["rollout.horizon_end=1.5"]),
        (["weighting=custom", "weighting.path=a:b"], ["weighting.path=a:b (which gets the progress)"]),
        (
            ["optim.schedule=linear", "weighting=prefix_boost"],
            ["optim.schedule=linear", "weighting.scheme=prefix_boost"],
        ),
    ],
)
def test_what_depends_on_when_a_run_ends(overrides: list[str], names: list[str]) -> None:
    assert depending_on_the_end(composed(*overrides)) == names


# ---------------------------------------------------------------------------------------------- evaluations' noise


class Listening:
    """An engine that notes what noise it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | str]] = []

    def generate(self, prompts, sampling, *, seed, stream, **_):
        self.asked.append((seed, stream))
        return [plain_rollout(prompt.ids, [1], prompt_id=prompt.id) for prompt in prompts]


def test_an_evaluation_draws_with_the_runs_own_seed() -> None:
    engine, prompts = Listening(), [Prompt("p", [1], "", "x")]
    asked = SimpleNamespace(k=1, greedy=True, seed=11, decode=str)
    evaluate(engine, Benchmark("b", prompts, ExactGrader(None)), Sampling(), **vars(asked))  # type: ignore[arg-type]  # a namespace
    assert engine.asked == [(11, "eval"), (11, "eval")]
