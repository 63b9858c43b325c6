"""A teacher that reads prompts of its own scores the same responses after them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.records import plain_rollout
from torch.testing import assert_close

from iwopd.models.batch import Window
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.fake import FakeEngine
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.fake import FakeTeacher
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.prompted import PromptedTeacher
from iwopd.scoring.router import TeacherRouter
from iwopd.training.score import score
from iwopd.types import SAMPLED, Prompt, Rollout, Signal, as_ids

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lm(tiny_model) -> LanguageModel:
    return tiny_model(1)


@pytest.fixture(scope="module")
def rollouts(make_rollouts) -> list[Rollout]:
    """Every second one has a longer prompt for its teacher."""
    return [
        replace(rollout, teacher_prompt_ids=as_ids([7, 8, 9, *rollout.prompt_ids[::-1]])) if index % 2 else rollout
        for index, rollout in enumerate(make_rollouts(8, seed=4))
    ]


def direct(lm: LanguageModel, prompt: list[int], rollout: Rollout) -> torch.Tensor:
    """log p(response | prompt) by the model's own forward, token by token."""
    length = len(rollout.response_ids)
    ids = torch.tensor([*prompt, *rollout.response_ids.tolist()])[None]
    with torch.no_grad():
        logprobs = torch.log_softmax(lm.model(ids).logits[0, -length - 1 : -1], dim=-1)
    return logprobs.gather(-1, torch.tensor(rollout.response_ids).long()[:, None]).squeeze(-1)


@pytest.mark.parametrize("window", [lambda length: (0, length), lambda length: (length // 2, length)])
@pytest.mark.parametrize("signal", [SAMPLED, Signal("top_k", 5), Signal("full")], ids=lambda signal: signal.kind)
def test_the_teacher_reads_its_prompt_and_the_student_its_own(window, signal, lm, rollouts, tiny_student) -> None:
    student, base = tiny_student(0), HfTeacher(lm, CPU)
    scored = score(PromptedTeacher(HfTeacher(lm, CPU)), rollouts, window, signal=signal, student=student, base=base)
    assert [record.rollout for record in scored] == rollouts
    for record in scored:
        rollout, inside = record.rollout, slice(record.start, record.stop)
        own = rollout.prompt_ids.tolist()
        taught = own if rollout.teacher_prompt_ids is None else rollout.teacher_prompt_ids.tolist()
        for found, model, prompt in (
            (record.teacher_logprobs, lm, taught),
            (record.trainer_logprobs, student.lm, own),
            (record.base_logprobs, lm, own),  # ExOPD's base is asked what the student is asked
        ):
            expected = direct(model, prompt, rollout)[inside]
            assert_close(torch.tensor(found), expected, rtol=1e-5, atol=1e-5)


def test_what_was_expected_is_recognised() -> None:
    """Teachers that begin early know a rollout by the object they were given."""

    class Early(FakeTeacher):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[Rollout] = []

        def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
            self.told.append(rollout)

        def score(self, rollouts: Any, window: Window, **asked: Any) -> Any:
            assert [id(each) for each in rollouts] == [id(each) for each in self.told]
            return super().score(rollouts, window, **asked)

    given = [plain_rollout([1], [2, 3], prompt_id=name, teacher_prompt_ids=as_ids([4, 1])) for name in "ab"]
    early = Early()
    teacher = PromptedTeacher(early)
    for rollout in given:
        teacher.expect(rollout, lambda length: (0, length))
    scored = teacher.score(given, lambda length: (0, length))
    assert [id(record.rollout) for record in scored] == [id(each) for each in given]
    assert [each.prompt_ids.tolist() for each in early.told] == [[4, 1], [4, 1]]


def test_of_several_teachers_each_reads_its_own(lm, tiny_model) -> None:
    other = tiny_model(2)
    given = [
        plain_rollout([1, 2], [3, 4, 5], prompt_id="a", teacher_prompt_ids=as_ids([9, 1])),
        plain_rollout([1, 2], [3, 4, 5], prompt_id="b"),
    ]
    prompts = [Prompt("a", [1, 2], "", teacher="hinted"), Prompt("b", [1, 2], "")]
    named = {"plain": HfTeacher(other, CPU), "hinted": PromptedTeacher(HfTeacher(lm, CPU))}
    first, second = TeacherRouter(named, "plain", prompts).score(given, lambda length: (0, length))
    assert_close(torch.tensor(first.teacher_logprobs), direct(lm, [9, 1], given[0]), rtol=1e-5, atol=1e-5)
    assert_close(torch.tensor(second.teacher_logprobs), direct(other, [1, 2], given[1]), rtol=1e-5, atol=1e-5)


def test_engines_carry_it_from_the_prompt_to_the_record(lm) -> None:
    prompts = [Prompt("a", [1, 2, 3], "", teacher_ids=[4, 5]), Prompt("b", [1, 2, 3], "")]
    for engine in (FakeEngine(), HfEngine(lm, [49])):
        first, second = engine.generate(prompts, Sampling(max_tokens=3), seed=1, stream=0)
        assert first.teacher_prompt_ids is not None
        assert first.teacher_prompt_ids.tolist() == [4, 5]
        assert first.as_taught.ids().tolist() == [4, 5, *first.response_ids.tolist()]
        assert second.teacher_prompt_ids is None
        assert second.as_taught is second
