"""What is shown of a stage, and what is measured."""

import io

from rich.console import Console

from iwopd.machine.memory_watch import MemoryWatch
from iwopd.runs.console import Display
from iwopd.training.stages import Stages


def test_of_each_stage_that_ended_seconds_and_memory_are_known_until_the_next_step() -> None:
    with MemoryWatch() as memory, Display(Console(file=io.StringIO())) as display:
        stage = Stages(display, memory)
        stage.begin()
        for name in ("rollout", "eval", "eval"):
            with stage(name) as progress:
                progress(1, 2, 3, 4)
                assert f"time/{name}_s" not in stage.measured or name == "eval"
        assert set(stage.measured) == {"time/rollout_s", "memory/rollout_mib", "time/eval_s", "memory/eval_mib"}
        assert stage.measured["memory/eval_mib"] > 50
        once = stage.measured["time/eval_s"]
        with stage("eval"):
            pass
        assert stage.measured["time/eval_s"] > once, "parts of one stage add up"
        stage.begin()
        assert stage.measured == {}
