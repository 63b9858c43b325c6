"""Progress in words: tokens, a rate, and a time left that promises no more than is known."""

import io
import threading

import pytest
from rich.console import Console

from iwopd.rollout.base import part_of
from iwopd.rollout.tally import Series, Tally
from iwopd.runs import console as display
from iwopd.runs.console import Display
from iwopd.runs.meter import Meter, duration


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def meter(time: Time) -> Meter:
    return Meter(time)


def test_before_anything_is_reported_it_says_how_long(meter: Meter, time: Time) -> None:
    time.now += 12
    assert str(meter) == "under way for 12 s"


def test_while_no_response_has_ended_only_a_bound_is_known(meter: Meter, time: Time) -> None:
    time.now += 10
    meter(0, 64, 640, 64 * 1000)
    assert str(meter) == "0 of 64 responses, 640 tokens after 10 s, 64 tokens/s, at most 16 min left"


def test_then_the_rest_is_taken_to_end_as_those_so_far(meter: Meter, time: Time) -> None:
    time.now += 10
    meter(8, 64, 1600, 1000 + 56 * 1000)  # 200 tokens for each that ended: 12,800 in all
    assert meter.expected == 12800
    assert str(meter) == "8 of 64 responses, 1,600 tokens after 10 s, 160 tokens/s, about 70 s left, at most 6 min"


def test_no_more_is_expected_than_there_can_be(meter: Meter, time: Time) -> None:
    time.now += 1
    meter(1, 10, 900, 1000)
    assert meter.expected == 1000


def test_of_known_tokens_the_time_left_is_one_number(meter: Meter, time: Time) -> None:
    time.now += 80
    meter(5, 10, 600, 1000)
    assert str(meter) == "5 of 10 responses, 600 tokens after 80 s, 7.5 tokens/s, about 53 s left"


def test_the_rate_is_that_of_late(meter: Meter, time: Time) -> None:
    for second in range(1, 101):  # 100 tokens a second for a minute, then one
        time.now += 1
        meter(9, 10, 100 * min(second, 60) + max(0, second - 60), 20_000)
    assert meter.rate == pytest.approx(1.0)
    assert "1 tokens/s" in str(meter)


def test_work_without_tokens_is_counted_in_items(meter: Meter, time: Time) -> None:
    time.now += 20
    meter(100, 900)
    assert str(meter) == "100 of 900 after 20 s, about 3 min left"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_tally_counts_unfinished_responses_at_their_longest() -> None:
    told = []
    tally = Tally(4, 10, lambda *counts: told.append(counts))
    tally.under_way(4)
    tally.under_way(7, ended=1, ended_tokens=2)
    tally.keep(2, 12)
    assert told == [(0, 4, 4, 40), (1, 4, 7, 32), (2, 4, 12, 32)]


def test_calls_and_passes_add_up() -> None:
    told = []
    series = Series(5, 10, lambda *counts: told.append(counts))
    for asked, tokens in ((3, 15), (2, 4)):
        series.call()(asked, asked, tokens, tokens)
    assert told == [(3, 5, 15, 35), (5, 5, 19, 19)]
    told.clear()
    for place in (0, 1):
        part_of(lambda *counts: told.append(counts), place, 2)(3, 3, 30, 30)
    assert told == [(3, 6, 30, 60), (6, 6, 60, 60)]


def test_plain_lines_come_without_anything_being_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN_FIRST", 0.01)
    monkeypatch.setattr(display, "PLAIN_LAST", 0.01)
    out, seen = io.StringIO(), threading.Event()
    with Display(Console(file=out)) as shown:
        monkeypatch.setattr(shown, "line", lambda text: (out.write(text + "\n"), seen.set()))
        with shown.stage("evaluating"):
            assert seen.wait(20)
    assert out.getvalue().startswith("evaluating: under way for 0 s\n")
    lines = out.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
    assert out.getvalue() == lines
