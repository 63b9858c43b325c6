"""Keys and values with room for tokens to come."""

import numpy
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from iwopd.rollout import caches, decoding
from iwopd.rollout.base import Sampling
from iwopd.rollout.caches import appended
from iwopd.rollout.hf import HfEngine
from iwopd.types import Prompt


def tokens(count: int, seed: int, heads: int = 2, batch: int = 3) -> Tensor:
    return torch.randn(batch, heads, count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_held_is_all_that_came(heads: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "ROOM", 4)
    held, expected = None, tokens(0, 0, heads, batch)
    for seed, count in enumerate([5, 1, 1, 1, 1, 1, 3, 1, 7, 1]):
        new = tokens(count, seed, heads, batch)
        held, expected = appended(held, new), torch.cat([expected, new], dim=-2)
        assert torch.equal(held, expected)


def test_it_is_copied_when_there_is_no_room_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "ROOM", 4)
    held = appended(None, tokens(5, 0))
    places = []
    for seed in range(10):
        held = appended(held, tokens(1, seed))
        places.append(held.data_ptr())
    assert [places[at] == places[at - 1] for at in range(1, 10)] == [True] * 3 + [False] + [True] * 4 + [False]


def test_rows_that_stay_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "ROOM", 4)
    held = appended(appended(None, tokens(5, 0)), tokens(1, 1))
    kept = held.index_select(0, torch.tensor([2, 0]))
    new = tokens(1, 2, batch=2)
    assert torch.equal(appended(kept, new), torch.cat([held[[2, 0]], new], dim=-2))


@pytest.mark.parametrize("room", [1, 5, 128])
def test_samples_are_those_of_a_cache_that_is_concatenated(room: int, tiny_student, monkeypatch) -> None:
    """With a row that leaves on the way."""
    student = tiny_student(0)
    prompts = [Prompt(str(length), list(range(1, length + 1)), "") for length in (3, 5, 9)]

    def answers() -> list[tuple[list[int], list[float]]]:
        made = HfEngine(student.lm, stops).generate(prompts, Sampling(n=2, max_tokens=24), seed=1, stream=0)
        return [(each.response_ids.tolist(), each.sampler_logprobs.tolist()) for each in made]

    stops: list[int] = []
    stops = [answers()[0][0][3], answers()[3][0][9], answers()[5][0][5]]
    monkeypatch.setattr(caches, "ROOM", room)
    found = answers()
    assert len({len(ids) for ids, _ in found}) > 1, "none leaves"
    monkeypatch.setattr(decoding, "new_cache", lambda lm: DynamicCache(config=lm.model.config))
    for (ids, logprobs), (slow, expected) in zip(found, answers(), strict=True):
        assert ids == slow
        numpy.testing.assert_array_equal(logprobs, expected)
