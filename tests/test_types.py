"""Records: what their arrays must be, and what they keep in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.records import plain_rollout

from iwopd.types import Rollout, ScoredRollout, as_ids, as_logprobs

ROLLOUT = plain_rollout([1, 2, 3], [4, 5], [-0.5, -1.5])
SCORED = ScoredRollout(ROLLOUT, 1, 2, as_logprobs([-2]), as_logprobs([-3]))


@pytest.mark.parametrize("values", [[0, 2**31 - 1], (), range(3), np.arange(3), np.array([7], np.uint8)], ids=repr)
def test_ids_are_an_int32_array_of_their_own(values) -> None:
    found = as_ids(values)
    assert found.dtype == np.int32
    assert found.tolist() == list(values)
    assert found.base is None
    assert found is not values


@pytest.mark.parametrize("values", [[0.5], [[1, 2]], 3, [-1], [2**31], [2**70], ["a"], [None], [True]], ids=repr)
def test_what_is_no_row_of_ids_is_an_error_that_says_so(values) -> None:
    with pytest.raises(ValueError, match="token ids must be one row of whole numbers from 0 to"):
        as_ids(values)


def test_logprobs_are_rounded_to_float32_as_torch_does() -> None:
    values = [-0.1, -1 / 3, -1e-50, -1e300, float("nan"), float("-inf"), 0]
    found = as_logprobs(values)
    assert found.dtype == np.float32
    assert np.array_equal(found, torch.tensor(values).numpy(), equal_nan=True)
    assert as_logprobs([]).dtype == np.float32


@pytest.mark.parametrize("values", [[[-1.0]], -1.0, ["a"], [None], [1j]], ids=repr)
def test_what_is_no_row_of_logprobs_is_an_error_that_says_so(values) -> None:
    with pytest.raises(ValueError, match="log-probs must be one row of numbers"):
        as_logprobs(values)


@pytest.mark.parametrize("name", ["prompt_ids", "response_ids", "sampler_logprobs"])
@pytest.mark.parametrize("change", [lambda values: values.tolist(), lambda values: values.astype(np.float64)])
def test_a_rollout_takes_no_lists_and_no_other_numbers(change, name) -> None:
    maker = "as_ids" if name.endswith("ids") else "as_logprobs"
    with pytest.raises(ValueError, match=rf"rollout p#0: {name} is no \w+ array; make it with iwopd.types.{maker}"):
        replace(ROLLOUT, **{name: change(getattr(ROLLOUT, name))})


@pytest.mark.parametrize("values", [[], [-1.0, -1.0]])
@pytest.mark.parametrize("whose", ["teacher", "trainer", "base"])
def test_wrong_counts_of_logprobs_name_the_rollout(whose, values) -> None:
    with pytest.raises(ValueError, match=f"rollout p#0: {len(values)} {whose}_logprobs for 1 tokens"):
        replace(SCORED, **{f"{whose}_logprobs": as_logprobs(values)})
    with pytest.raises(ValueError, match="rollout p#0: 1 sampler_logprobs for 2 tokens"):
        replace(ROLLOUT, sampler_logprobs=as_logprobs([-1]))
    with pytest.raises(ValueError, match="teacher_logprobs is no float32 array"):
        ScoredRollout(ROLLOUT, 1, 2, None)  # type: ignore[arg-type]  # what is refused


def test_records_are_equal_where_all_their_fields_are() -> None:
    def twin() -> Rollout:
        return plain_rollout([1, 2, 3], [4, 5], [-0.5, -1.5])

    assert [twin()] == [ROLLOUT]
    assert replace(SCORED, rollout=twin()) == SCORED
    assert ROLLOUT != SCORED
    for changed in ({"response_ids": as_ids([4, 6])}, {"prompt_ids": as_ids([1])}, {"sample": 1}, {"prompt_id": "q"}):
        assert replace(ROLLOUT, **changed) != ROLLOUT
        assert replace(SCORED, rollout=replace(ROLLOUT, **changed)) != SCORED
    for name, values in (("trainer", None), ("base", as_logprobs([-1])), ("teacher", as_logprobs([0]))):
        changed = replace(SCORED, **{f"{name}_logprobs": values})
        for one, other in ((changed, SCORED), (SCORED, changed)):
            assert one != other


def test_ids_are_those_of_the_prompt_and_the_response_up_to_where_they_are_wanted() -> None:
    assert ROLLOUT.ids().tolist() == [1, 2, 3, 4, 5]
    assert ROLLOUT.ids(1).tolist() == [1, 2, 3, 4]
    assert ROLLOUT.ids(0).tolist() == [1, 2, 3]
