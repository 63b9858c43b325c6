"""A terminal while a run trains: bars and facts on a few lines that are always in sight."""

import io
import re

import pytest
from rich.console import Console

from iwopd.runs.console import Display, PlainConsole, stages_line, step_line
from iwopd.runs.meter import Meter

STEP = {
    "train/loss": 0.5,
    "train/reverse_kl": 0.25,
    "train/abs_advantage_mean": 0.3,
    "train/weight_mean": 1.25,
    "train/response_length": 20.0,
    "tokens/generated": 3000,
    "time/rollout_s": 1.0,
    "time/score_s": 0.25,
    "time/update_s": 0.75,
    "time/sync_s": 0.01,
    "memory/rollout_mib": 9,
}


def screen(width: int = 80) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=width, _environ={"TERM": "xterm"})
    return Display(console), out


def last_frame(display: Display, out: io.StringIO) -> list[str]:
    """The lines of the bars and facts as they were drawn last."""
    out.truncate(0)
    out.seek(0)
    display.screen.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", out.getvalue())
    return [line.rstrip() for line in drawn.split("\n") if line.strip()]


def test_a_run_is_seen_on_one_screen() -> None:
    display, out = screen()
    with display:
        display.run(3, 12, "steps", 200.0)
        display.fact("evaluation on smoke", "after step 2, smoke: mean@2 0.301 [0.245, 0.363]")
        display.fact("evaluation on smoke", "after step 4, smoke: mean@2 0.406 [0.345, 0.463]" + " and so on" * 9)
        display.fact("stages", stages_line(3, STEP))
        with display.stage("step 4: rollout") as advance:
            advance(16, 64, 3200, 9000)
            lines = last_frame(display, out)
        assert len(last_frame(display, out)) == 3, "a stage that has ended is gone"
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    assert "3 of 12 steps, about 3 min left" in lines[0]
    assert "step 4: rollout" in lines[1]
    assert "16/64" in lines[1]
    assert lines[2].startswith("after step 4, smoke: mean@2 0.406")
    assert lines[2].endswith("…")
    assert lines[3] == "step 3: 1,493 tokens/s; rollout 1.0 s, score 0.2 s, update 0.8 s"


def test_every_stage_says_something_from_its_first_moment() -> None:
    """A bar is drawn by a thread of its own at any moment, so at none may it lack what it shows."""
    display, out = screen()
    with display:
        display.run(0, 12, "steps")
        with display.stage("loading"):
            assert "under way" in last_frame(display, out)[1]


def test_nothing_stays_on_a_screen_that_is_none() -> None:
    out = io.StringIO()
    with Display(Console(file=out)) as display:
        display.run(3, 12, "steps", 200.0)
        display.fact("a", "after step 4")
    assert out.getvalue().strip() == ""


@pytest.mark.parametrize(("left", "said"), [(None, "1,493 tokens/s"), (200.0, "1,493 tokens/s  about 3 min left")])
def test_a_step_says_how_fast_it_was(left: float | None, said: str) -> None:
    line = step_line("step 3/12", STEP, left)
    assert line.startswith("step 3/12  loss 0.5000  reverse KL 0.250  |A| 0.300  weight 1.25  length 20.0  2.0 s")
    assert line.endswith(said)


def test_a_meter_is_short_where_there_is_a_bar() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    assert meter.short() == "under way"
    now[0] = 10.0
    meter(16, 64, 3200, 9000)
    assert meter.short() == "16/64, 320 tokens/s, about 18 s left"
    items = Meter(lambda: now[0])
    now[0] = 20.0
    items(5, 10)
    assert items.short() == "5/10, about 10 s left"
