"""Sampling with transformers: the same text at any batch size, from the distribution that is reported."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from iwopd.errors import NonFiniteError
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine, draw, sampling_logprobs
from iwopd.types import Prompt, Rollout

STOP = (3, 17, 31, 44)
PLAIN = Sampling(n=3, max_tokens=24)


def prompts_of(n: int, seed: int = 0, longest: int = 9) -> list[Prompt]:
    drawn = random.Random(seed)
    return [
        Prompt(f"p{index}", [drawn.randrange(50) for _ in range(drawn.randint(1, longest))], text="")
        for index in range(n)
    ]


PROMPTS = prompts_of(5)


@pytest.fixture(scope="module")
def lm(tiny_model) -> LanguageModel:
    return tiny_model(0)


def generate(lm: LanguageModel, prompts: Sequence[Prompt] = PROMPTS, sampling: Sampling = PLAIN, **options):
    options = {"seed": 1, "stream": 0, "batch_size": 64, "stop_ids": STOP} | options
    engine = HfEngine(lm, options.pop("stop_ids"), options.pop("batch_size"))
    return engine.generate(prompts, sampling, **options)


def responses(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.response_ids.tolist() for rollout in rollouts]


def full_logits(lm: LanguageModel, rollout: Rollout) -> Tensor:
    """[time, vocabulary] logits of one rollout by a single forward pass, without cache or padding."""
    ids = torch.tensor(rollout.ids())[None].long()
    with torch.no_grad():
        return lm.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1]


# ---------------------------------------------------------------------------------------------- the same text


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_text_does_not_depend_on_the_batch_size(batch_size, lm):
    found, expected = generate(lm, batch_size=batch_size), generate(lm)
    assert responses(found) == responses(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-5)
        assert replace(ours, sampler_logprobs=theirs.sampler_logprobs) == theirs


def test_text_does_not_depend_on_the_order_of_the_prompts(lm):
    found = generate(lm, PROMPTS[::-1], batch_size=4)
    expected = generate(lm, batch_size=4)
    by_name = {rollout.name: rollout.response_ids.tolist() for rollout in expected}
    assert [rollout.name for rollout in found] == [
        f"p{index}#{sample}" for index in (4, 3, 2, 1, 0) for sample in (0, 1, 2)
    ]
    assert all(rollout.response_ids.tolist() == by_name[rollout.name] for rollout in found)


@contextmanager
def forwards(lm: LanguageModel, most: int | None = None) -> Iterator[list[int]]:
    """Rows of every forward pass; memory is for `most` of them."""
    rows = list[int]()

    def see(model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        rows.append(len(named["input_ids"]))
        if most is not None and rows[-1] > most:
            raise torch.OutOfMemoryError("full")

    hook = lm.model.base_model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def test_finished_rows_are_dropped_without_effect_on_the_others(lm):
    with forwards(lm) as rows:
        together = generate(lm)
    assert rows[0] == 15
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 2, "rows are to finish at different times"
    with forwards(lm) as rows:
        assert responses(together) == responses(generate(lm, batch_size=1))
    assert set(rows) == {1}


def test_a_rollout_tells_what_it_answers(lm):
    rollouts = generate(lm)
    for prompt, group in zip(PROMPTS, [rollouts[i : i + 3] for i in range(0, 15, 3)], strict=True):
        assert [rollout.sample for rollout in group] == [0, 1, 2]
        assert all((rollout.prompt_id, rollout.prompt_ids.tolist()) == (prompt.id, prompt.ids) for rollout in group)


def test_progress_is_reported_at_every_token_and_ends_with_all(lm):
    told = []
    rollouts = generate(lm, batch_size=4, progress=lambda *counts: told.append(counts))
    assert told == sorted(told), "neither responses nor tokens become fewer"
    assert len({tokens for _, _, tokens, _ in told}) > 24, "within batches too"
    assert [most for *_, most in told] == sorted((most for *_, most in told), reverse=True)
    whole = sum(len(rollout.response_ids) for rollout in rollouts)
    assert told[-1] == (15, 15, whole, whole)
    for done, _, tokens, most in told:
        assert tokens <= most <= tokens + 24 * (15 - done)


def test_rollouts_carry_the_version_that_was_synced(lm):
    engine = HfEngine(lm, STOP)
    engine.sync_weights(None, 7)
    assert {rollout.policy_version for rollout in engine.generate(PROMPTS, PLAIN, seed=1, stream=0)} == {7}


# ---------------------------------------------------------------------------------------------- where it ends


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(lm):
    rollouts = generate(lm, sampling=replace(PLAIN, n=8))
    for rollout in rollouts:
        body, last = rollout.response_ids[:-1], rollout.response_ids[-1]
        assert not set(body) & set(STOP)
        assert rollout.finish_reason == ("stop" if last in STOP else "length")
        assert len(rollout.response_ids) <= 24
        assert rollout.finish_reason == "stop" or len(rollout.response_ids) == 24
        assert len(rollout.sampler_logprobs) == len(rollout.response_ids)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 5


def test_a_lower_limit_cuts_the_same_text(lm):
    longer, shorter = generate(lm), generate(lm, sampling=replace(PLAIN, max_tokens=5))
    assert responses(shorter) == [response[:5] for response in responses(longer)]


def test_a_stop_token_at_the_limit_is_a_stop(lm):
    [free] = generate(lm, PROMPTS[:1], Sampling(max_tokens=6), stop_ids=[])
    last = free.response_ids[-1]
    assert last not in free.response_ids[:-1]
    [found] = generate(lm, PROMPTS[:1], Sampling(max_tokens=6), stop_ids=[last])
    assert found == replace(free, finish_reason="stop")


# ---------------------------------------------------------------------------------------------- randomness


def test_equal_seeds_give_equal_text(lm):
    assert generate(lm) == generate(lm)


def test_the_global_generator_is_neither_used_nor_moved(lm):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = generate(lm)
    assert torch.equal(torch.rand(3), expected)
    assert found == generate(lm)


@pytest.mark.parametrize("changed", [{"seed": 2}, {"stream": 1}, {"stream": "eval"}])
def test_seed_and_step_change_the_text(changed, lm):
    pairs = zip(responses(generate(lm, stop_ids=[])), responses(generate(lm, stop_ids=[], **changed)), strict=True)
    assert all(ours != theirs for ours, theirs in pairs)


def test_samples_and_prompts_of_the_same_tokens_differ(lm):
    twins = [Prompt(name, [5, 6, 7], text="") for name in ("a", "b")]
    texts = responses(generate(lm, twins, stop_ids=[]))
    assert len({tuple(text) for text in texts}) == 6


# ---------------------------------------------------------------------------------------------- the distribution


def test_reported_logprobs_are_the_trainers(lm):
    rollouts = generate(lm, batch_size=6)
    tokens = collate_tokens(rollouts, [(0, len(rollout.response_ids)) for rollout in rollouts])
    with torch.no_grad():
        recomputed = tokens.to_rows(lm.token_logprobs(tokens))
    for rollout, expected in zip(rollouts, recomputed, strict=True):
        assert rollout.sampler_logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def allowed(logits: Sequence[float], sampling: Sampling) -> dict[int, float]:
    """Token to probability under temperature, then top-k, then top-p, in plain Python."""
    weights = (torch.tensor(logits, dtype=torch.float64) / sampling.temperature).softmax(-1).tolist()
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    ranked = ranked[: sampling.top_k or None]
    whole, reached, nucleus = sum(weights[token] for token in ranked), 0.0, []
    for token in ranked:
        if reached >= sampling.top_p * whole:
            break
        nucleus.append(token)
        reached += weights[token]
    return {token: weights[token] / reached for token in nucleus}


PROCESSED = [
    Sampling(temperature=0.6),
    Sampling(temperature=1.7),
    Sampling(top_k=4),
    Sampling(top_k=1),
    Sampling(top_p=0.7),
    Sampling(top_p=0.01),
    Sampling(temperature=1.5, top_k=10, top_p=0.8),
    Sampling(temperature=0.8, top_k=100, top_p=0.95),
]
on_processed = pytest.mark.parametrize(
    "sampling", PROCESSED, ids=lambda s: f"temperature {s.temperature}, top_k {s.top_k}, top_p {s.top_p}"
)


@on_processed
def test_processed_distribution_equals_plain_python(sampling):
    logits = 2 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for row, found in zip(logits, sampling_logprobs(logits, sampling), strict=True):
        expected = allowed(row.tolist(), sampling)
        assert found.isfinite().nonzero().flatten().tolist() == sorted(expected)
        for token, probability in expected.items():
            assert found[token].exp().item() == pytest.approx(probability, rel=1e-4)


@on_processed
def test_samples_lie_in_the_processed_distribution_and_report_its_logprobs(sampling, lm):
    for rollout in generate(lm, sampling=replace(sampling, n=2, max_tokens=8)):
        for logits, token, logprob in zip(
            full_logits(lm, rollout), rollout.response_ids.tolist(), rollout.sampler_logprobs.tolist(), strict=True
        ):
            probabilities = allowed(logits.tolist(), sampling)
            assert token in probabilities
            expected = torch.tensor(probabilities[token], dtype=torch.float64).log().item()
            assert logprob == pytest.approx(expected, abs=2e-5)


def test_temperature_zero_is_greedy(lm):
    rollouts = generate(lm, sampling=Sampling(n=2, max_tokens=12, temperature=0.0), stop_ids=[])
    for _, pair in groupby(rollouts, key=lambda rollout: rollout.prompt_id):
        first, second = pair
        assert first.response_ids.tolist() == second.response_ids.tolist()
        assert first.response_ids.tolist() == full_logits(lm, first).argmax(-1).tolist()
        assert first.sampler_logprobs.tolist() == [0.0] * 12


def test_first_tokens_are_as_frequent_as_they_are_probable(lm):
    n = 4000
    rollouts = generate(lm, PROMPTS[:1], Sampling(n=n, max_tokens=1), batch_size=n, stop_ids=[])
    counts = torch.bincount(torch.tensor(responses(rollouts)).flatten(), minlength=50)
    expected = n * full_logits(lm, rollouts[0])[0].double().softmax(-1)
    common = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    assert freedom > 10
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_draw_gives_every_token_its_share_of_the_unit_interval():
    probabilities = torch.tensor([0.1, 0.0, 0.4, 0.25, 0.0, 0.25])
    n = 1000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.bincount(draw(probabilities.log().expand(n, -1), uniform), minlength=6)
    assert_close(counts.double() / n, probabilities.double(), rtol=0, atol=1 / n)


def test_draw_tells_improbable_tokens_apart():
    """After a token of almost 1, sums in float32 (steps of 6e-8) would lump sixty tokens of 1e-9 together."""
    size = 1000
    logprobs = torch.tensor([1 - size * 1e-9, *[1e-9] * size], dtype=torch.float64).log().float()
    places = torch.tensor([0, 1, 37, size // 2, size - 1])
    uniform = 1 - (size - places - 0.5).double() * 1e-9
    assert draw(logprobs.expand(len(places), -1), uniform).tolist() == (places + 1).tolist()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_draw_never_gives_a_token_of_probability_zero(uniform):
    logprobs = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0]]).log().log_softmax(-1)
    assert draw(logprobs, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 3)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_damaged_weights_are_an_error_that_names_the_rollout(temperature, tiny_model):
    broken = tiny_model(0)
    with torch.no_grad():
        broken.model.base_model.norm.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"p0#0, after 0 steps"):
        generate(broken, PROMPTS[:1], replace(PLAIN, temperature=temperature))


def test_out_of_memory_halves_the_batch_and_changes_no_text(tiny_model, caplog):
    model = tiny_model()
    prompts = [Prompt(str(index), [1 + index, 2, 3], "") for index in range(6)]
    expected = HfEngine(model, [0]).generate(prompts, Sampling(max_tokens=5), seed=1, stream=0)
    engine = HfEngine(model, [0])
    with forwards(model, most=2):
        found = engine.generate(prompts, Sampling(max_tokens=5), seed=1, stream=0)
    assert responses(found) == responses(expected)
    assert engine.batch_size == 1
    assert "rollout.batch_size=3" in caplog.text


def test_ids_the_teacher_does_not_know_are_never_sampled(tiny_model):
    engine = HfEngine(tiny_model(), [0], vocabulary=7)
    made = engine.generate([Prompt("p", [1, 2], "")], Sampling(n=20, max_tokens=10), seed=1, stream=0)
    assert max(token for rollout in made for token in rollout.response_ids) < 7
