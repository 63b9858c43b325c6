"""The time left of a run, from what its steps, evaluations and checkpoints took, by hand."""

import pytest

from iwopd.training.pace import LAST, Pace
from iwopd.training.schedule import Position, Schedule


def test_before_the_first_step_nothing_is_known() -> None:
    pace = Pace()
    pace.took("evaluations", 60.0)
    assert pace.left({"steps": 10, "evaluations": 2, "checkpoints": 1}) is None


def test_each_kind_counts_with_its_mean() -> None:
    pace = Pace()
    for seconds in (1.0, 3.0):
        pace.took("steps", seconds)
    pace.took("evaluations", 60.0)
    assert pace.left({"steps": 10, "evaluations": 2, "checkpoints": 1}) == 10 * 2.0 + 2 * 60.0


def test_the_last_ones_count_alone() -> None:
    pace = Pace()
    for seconds in [100.0] * 5 + [2.0] * LAST:
        pace.took("steps", seconds)
    assert pace.left({"steps": 3}) == 6.0


def test_what_raises_is_not_counted() -> None:
    pace = Pace()
    with pytest.raises(KeyboardInterrupt), pace("steps"):
        raise KeyboardInterrupt
    assert pace.left({"steps": 3}) is None
    with pace("steps"):
        pass
    assert pace.left({"steps": 0}) == 0


@pytest.mark.parametrize(
    ("schedule", "at", "expected"),
    [
        (Schedule(12, None, 4, 5), Position(4), (8, 2, 3)),  # evaluated at 8 and 12, saved at 5, 10 and 12
        (Schedule(12, None, 4, 5), Position(5), (7, 2, 2)),
        (Schedule(12, None, 0, 0), Position(4), (8, 1, 1)),  # at the end alone
        (Schedule(12, None, None, 3), Position(0), (12, 0, 4)),
        (Schedule(12, None, 4, 5), Position(12), (0, 0, 0)),
        (Schedule(99, 1000, 4, 5), Position(4, 500), (4, 1, 2)),  # 125 tokens a step: 8 steps in all
        (Schedule(99, 1000, 4, 5), Position(0, 0), (1, 1, 1)),
    ],
)
def test_what_is_still_to_come(schedule: Schedule, at: Position, expected: tuple[int, int, int]) -> None:
    assert tuple(schedule.remaining(at).values()) == expected
