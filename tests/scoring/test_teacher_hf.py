"""The teacher in transformers: direct log-probs, whatever the batches."""

import pytest
import torch
from torch.testing import assert_close

from iwopd.errors import NonFiniteError
from iwopd.models.language_model import LanguageModel
from iwopd.numerics import window_bounds
from iwopd.scoring.hf import HfTeacher
from iwopd.training.score import score
from iwopd.types import Signal

WINDOWS = {
    "whole": lambda length: (0, length),
    "first": lambda length: window_bounds(length, 0.3, "first"),
    "last": lambda length: window_bounds(length, 0.3, "last"),
}
on_windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lm(tiny_model) -> LanguageModel:
    return tiny_model(1)


@pytest.fixture(scope="module")
def rollouts(make_rollouts):
    return make_rollouts(8, seed=4)


def direct(lm: LanguageModel, rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own forward of one rollout: log-probs and last hidden states, by response token."""
    ids, length = torch.tensor(rollout.ids())[None].long(), len(rollout.response_ids)
    with torch.no_grad():
        output = lm.model(ids, output_hidden_states=True)
    logprobs = torch.log_softmax(output.logits[0, -length - 1 : -1], dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(rollout.response_ids).long()[:, None]).squeeze(-1)
    return chosen, output.hidden_states[-1][0, -length - 1 : -1]


@on_windows
@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
def test_scores_are_the_models_logprobs_of_the_window_in_the_order_given(batch_tokens, window, lm, rollouts):
    scored = HfTeacher(lm, CPU, batch_tokens).score(rollouts, window)
    assert [record.rollout for record in scored] == rollouts
    for record in scored:
        expected, _ = direct(lm, record.rollout)
        assert (record.start, record.stop) == window(len(record.rollout.response_ids))
        assert_close(torch.tensor(record.teacher_logprobs), expected[record.start : record.stop], rtol=1e-5, atol=1e-5)
        assert record.teacher_hidden is record.trainer_logprobs is None


@on_windows
def test_hidden_states_are_kept_where_asked_for(window, lm, rollouts):
    teacher = HfTeacher(lm, CPU, batch_tokens=40)
    for record in teacher.score(rollouts, window, signal=Signal("full")):
        _, states = direct(lm, record.rollout)
        assert_close(record.teacher_hidden, states[record.start : record.stop], rtol=1e-4, atol=1e-5)
        logits = teacher.head()(record.teacher_hidden)
        targets = torch.tensor(record.rollout.response_ids[record.start : record.stop]).long()
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)
        assert_close(torch.tensor(record.teacher_logprobs), logprobs, rtol=1e-5, atol=1e-5)


def test_no_forward_holds_more_tokens_than_were_allowed(lm, rollouts, monkeypatch):
    sizes, forward = [], LanguageModel.forward

    def watched(self, tokens, readout):
        sizes.append(tokens.input_ids.numel())
        return forward(self, tokens, readout)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    HfTeacher(lm, CPU, batch_tokens=40).score(rollouts, WINDOWS["whole"])
    assert max(sizes) <= 40
    assert 1 < len(sizes) < len(rollouts)


def test_a_cut_window_costs_no_tokens_behind_it(lm, make_rollouts, monkeypatch):
    columns, forward = [], LanguageModel.forward

    def watched(self, tokens, readout):
        columns.append(tokens.input_ids.shape[1])
        return forward(self, tokens, readout)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    long = make_rollouts(6, seed=5, longest=100, longest_prompt=3)
    HfTeacher(lm, CPU).score(long, WINDOWS["first"])
    assert columns == [max(len(r.prompt_ids) + window_bounds(len(r.response_ids), 0.3)[1] - 1 for r in long)]


def test_progress_ends_with_all_rollouts(lm, rollouts):
    told = []
    HfTeacher(lm, CPU, 40).score(rollouts, WINDOWS["whole"], progress=lambda *counts: told.append(counts))
    assert told == sorted(told)
    read = sum(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    assert told[-1] == (8, 8, read, read)
    assert {most for *_, most in told} == {read}


def test_a_teacher_is_frozen_and_keeps_no_graph(lm, rollouts):
    teacher = HfTeacher(lm, CPU)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not lm.model.training
    assert not teacher.score(rollouts, WINDOWS["whole"], signal=Signal("full"))[0].teacher_hidden.requires_grad


def test_score_adds_the_students_own_logprobs_where_asked_for(lm, rollouts, tiny_student):
    student = tiny_student(0, micro_batch_tokens=40)
    scored = score(HfTeacher(lm, CPU), rollouts, WINDOWS["last"], student=student)
    for record in scored:
        expected, _ = direct(student.lm, record.rollout)
        found = torch.tensor(record.trainer_logprobs)
        assert_close(found, expected[record.start : record.stop], rtol=1e-5, atol=1e-5)


def test_damaged_weights_are_an_error_that_names_the_rollout(tiny_model, rollouts):
    broken = tiny_model(1)
    token = rollouts[5].prompt_ids[0]
    clean = [rollout for rollout in rollouts if token not in rollout.ids()]
    assert clean
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(NonFiniteError, match=rf"rollout {rollouts[5].name} .*teacher\.dtype=float32"):
        HfTeacher(broken, CPU).score([*clean, rollouts[5]], WINDOWS["whole"])
