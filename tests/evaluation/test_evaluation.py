"""Evaluation and grading, with a fake engine where the numbers must be known, and the code around signals."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest

from iwopd.evaluation.evaluate import Benchmark, Evaluation, evaluate, evaluation_metrics
from iwopd.evaluation.grading import ExactGrader, MathGrader
from iwopd.report.stats import mean_interval
from iwopd.rollout.base import Sampling
from iwopd.rollout.fake import FakeEngine
from iwopd.runs.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.scoring.fake import FakeTeacher
from iwopd.training.score import score
from iwopd.types import Prompt


@pytest.mark.parametrize(
    ("pattern", "response", "answer", "right"),
    [
        (r"#([0-9]+)\Z", "abc|x#12", "12", True),
        (r"#([0-9]+)\Z", "abc|x#12 ", "12", False),
        (r"#([0-9]+)\Z", "abc|x#123", "12", False),
        (r"#([0-9]+)\Z", "12", "12", False),
        (r"answer: (\w+)", "answer: 3, no, answer: 4", "4", True),
        (r"[0-9]+", "7 then 8", "8", True),
        (None, " 12\n", "12", True),
        (None, "012", "12", False),
    ],
)
def test_exact_grading(pattern: str | None, response: str, answer: str, right: bool) -> None:
    (verdict,) = ExactGrader(pattern)([(response, Prompt("p", [1], "", answer=answer))])
    assert verdict.correct is right


class Script(FakeEngine):
    """Says whether each problem's samples are right: 1 is right, 0 is wrong; greedy answers are right."""

    def __init__(self, verdicts: Sequence[Sequence[int]]):
        super().__init__()
        self.verdicts = verdicts

    def generate(self, prompts, sampling, *, seed, stream, progress=lambda done, total: None):
        made = super().generate(prompts, sampling, seed=seed, stream=stream)
        said = [1] * len(made) if sampling.temperature == 0 else [v for row in self.verdicts for v in row]
        return [
            replace(rollout, response_ids=[verdict], finish_reason="stop" if verdict else "length")
            for rollout, verdict in zip(made, said, strict=True)
        ]


def measured(verdicts: Sequence[Sequence[int]], k: int) -> dict[str, float]:
    prompts = [Prompt(str(index), [1], "", answer="1") for index in range(len(verdicts))]
    benchmark = Benchmark("b", prompts, ExactGrader())
    sampling = Sampling(n=len(verdicts[0]))
    engine = Script(verdicts)
    return evaluate(engine, benchmark, sampling, k=k, greedy=True, seed=0, decode=lambda ids: str(ids[0])).metrics


def test_mean_and_pass_at_k_by_hand() -> None:
    metrics = measured([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], k=2)
    assert metrics["accuracy"] == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)
    # 1 − C(wrong, 2) / C(4, 2) per problem: 1 − 1/6, 0, 1, 1 − 3/6.
    assert metrics["pass_at_k"] == pytest.approx((5 / 6 + 0 + 1 + 0.5) / 4)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == mean_interval([0.5, 0.0, 1.0, 0.25])[1:]
    assert metrics["greedy_accuracy"] == 1
    assert metrics["truncated"] == pytest.approx(9 / 16)
    assert (metrics["response_length"], metrics["problems"], metrics["samples"], metrics["k"]) == (1, 4, 4, 2)


def test_mathematics_is_graded_in_every_sample() -> None:
    answers = [[r"so \boxed{\frac{2}{4}}", r"\boxed{2}"], ["no box", r"\boxed{x=\sqrt{8}}"]]
    prompts = [Prompt("0", [1], "", answer="0.5"), Prompt("1", [1], "", answer=r"2\sqrt{2}")]

    class Writer(FakeEngine):
        def generate(self, prompts, sampling, *, seed, stream, progress=lambda done, total: None):
            made = super().generate(prompts, sampling, seed=seed, stream=stream)
            return [replace(rollout, response_ids=[int(rollout.prompt_id), rollout.sample]) for rollout in made]

    found = evaluate(
        Writer(),
        Benchmark("b", prompts, MathGrader()),
        Sampling(n=2),
        k=2,
        greedy=False,
        seed=0,
        decode=lambda ids: answers[ids[0]][ids[1]],
    )
    assert [item.correct for item in found.graded] == [True, False, False, True]
    assert [item.verdict.answer for item in found.graded] == [r"\frac{2}{4}", "2", None, r"x=\sqrt{8}"]
    assert (found.metrics["accuracy"], found.metrics["pass_at_k"]) == (0.5, 1)
    assert found.metrics["grading_timeouts"] == 0


def test_several_benchmarks_keep_their_names_under_one_mean() -> None:
    found = [Evaluation(name, {"accuracy": value, "pass_at_k": value}) for name, value in (("a", 0.2), ("b", 0.4))]
    metrics = evaluation_metrics(found)
    assert metrics["eval/a/accuracy"] == 0.2
    assert metrics["eval/accuracy"] == pytest.approx(0.3)
    assert evaluation_metrics(found[:1]) == {"eval/accuracy": 0.2, "eval/pass_at_k": 0.2}


def test_the_fakes_serve_the_stages() -> None:
    with FakeEngine() as engine, FakeTeacher(-2.0) as teacher:
        prompts = [Prompt(str(index), [1, 2], "") for index in range(3)]
        rollouts = engine.generate(prompts, Sampling(n=2), seed=1, stream=0)
        scored = score(teacher, rollouts, lambda length: (1, length))
    assert [record.teacher_logprobs for record in scored] == [[-2.0] * 4] * 6
    assert engine.closed
    assert teacher.closed
    assert rollouts == FakeEngine().generate(prompts, Sampling(n=2), seed=1, stream=0)
    assert rollouts != FakeEngine().generate(prompts, Sampling(n=2), seed=1, stream=1)


def test_a_signal_waits_for_a_change_to_the_weights_to_be_whole() -> None:
    done = []

    def change() -> None:
        with Interrupts() as interrupts, interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("whole")

    with pytest.raises(Stopped) as stopped:
        change()
    assert done == ["whole"]
    assert stopped.value.status == 143


def test_asked_twice_it_stops_at_once() -> None:
    done = []

    def change() -> None:
        with Interrupts() as interrupts, interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("whole")

    with pytest.raises(ForcedStop):
        change()
    assert done == []


def test_outside_such_a_change_it_stops_at_once_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped, Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.status == 130
    assert signal.getsignal(signal.SIGINT) is before
