"""The config group `parallel`: what several processes cannot keep is refused, each mistake in one line."""

from pathlib import Path

import pytest
from support.composing import composed
from support.running import refused

from iwopd.config import Config, FsdpConfig, ParallelConfig
from iwopd.config.stored import stored
from iwopd.errors import ConfigError, RunFolderError
from iwopd.runs.folder import RunFolder

FSDP = "parallel=fsdp"
EIGHT = (FSDP, "parallel.processes=8")

WRONG = [
    ((FSDP, "parallel.processes=0"), "parallel.processes=0: must be at least 1"),
    ((FSDP, "parallel.gather=float16"), "parallel.gather=float16: not a choice"),
    ((FSDP, "parallel.teacher=shared"), "parallel.teacher=shared: not a choice; did you mean sharded?"),
    ((FSDP, "parallel.timeout_s=0"), "parallel.timeout_s=0.0: must be above 0"),
    ((*EIGHT, "parallel.replicate=3"), "parallel.replicate=3: does not divide parallel.processes=8"),
    ((*EIGHT, "scoring=vllm"), "use scoring=vllm_server, or scoring=hf with teacher.offload=true"),
    ((FSDP, "scoring=vllm"), "use scoring=vllm_server, or scoring=hf with teacher.offload=true"),
    ((*EIGHT, "parallel.teacher=sharded", "teacher.offload=true"), "use teacher.offload=false"),
    (
        (*EIGHT, "parallel.teacher=sharded", "+teachers.b={path: x, offload: true}"),
        "teachers.b.offload=true: a sharded",
    ),
    (
        (*EIGHT, "parallel.teacher=sharded", "loss.exopd_lambda=1.25", "base.offload=true"),
        "base.offload=true: a sharded model",
    ),
    (
        (FSDP, "parallel.teacher=sharded", "scoring=vllm_server", "scoring.urls=[http://a:1]"),
        "parallel.teacher=sharded: the teacher is not in transformers",
    ),
    ((*EIGHT, "run.device=cuda:1"), "run.device=cuda:1: each process of parallel=fsdp takes the GPU of its number"),
    ((*EIGHT, "teacher.device=cuda:1"), "teacher.device=cuda:1: each process"),
    (
        (*EIGHT, "rollout=vllm", "rollout.engine.tensor_parallel=3"),
        "rollout.engine.tensor_parallel=3: does not divide parallel.processes=8",
    ),
]


@pytest.mark.parametrize(("overrides", "says"), WRONG, ids=[" ".join(case[0][1:]) for case in WRONG])
def test_what_several_processes_cannot_keep_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    (line,) = caught.value.problems
    assert says in line


RIGHT = [
    ("student.lora.rank=8",),
    ("student.gradient_checkpointing=true", "optim.autocast=true", "parallel.gather=bfloat16"),
    ("parallel.replicate=2", "parallel.reshard=false"),
    ("parallel.replicate=8",),
    ("parallel.teacher=sharded", "base.offload=true"),  # a base that nothing asks for
    ("teacher.offload=true", "teacher.device=cpu", "run.device=cuda"),
    ("weighting=prefix_ratio", "optim.updates_per_batch=2", "rollout.n=3"),
    ("scoring=vllm_server", "scoring.urls=[http://a:1]", "rollout=vllm_server", "rollout.urls=[http://b:1]"),
    ("rollout=vllm", "rollout.engine.tensor_parallel=4"),
]


@pytest.mark.parametrize("overrides", RIGHT, ids=[" ".join(case) for case in RIGHT])
def test_what_several_processes_can_do_is_let_pass(overrides: tuple[str, ...]) -> None:
    config = composed(*EIGHT, *overrides)
    assert isinstance(config.parallel, FsdpConfig)
    assert config.parallel.processes == 8


def test_one_process_may_have_an_engine_that_scores() -> None:
    composed(FSDP, "parallel.processes=1", "scoring=vllm", "run.device=cuda:1")


@pytest.mark.cli
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("parallel.processes=2", "parallel.processes=2: no such key; choose parallel=fsdp, which has it"),
        ("tracking.mode=offline", "tracking.mode=offline: no such key; choose tracking=wandb, which has it"),
        ("rollout.sync=nccl", "rollout.sync=nccl: no such key; choose rollout=vllm_server, which has it"),
        ("parallel=ddp", "parallel=ddp: no such preset; choose one of fsdp, single"),
    ],
)
def test_a_setting_of_another_preset_names_that_preset(
    override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "train", override) == f"iwopd: {says}"


def _plain(config: Config) -> dict:
    return stored(config, "train")


def test_one_process_is_the_default_and_has_no_settings() -> None:
    config = composed()
    assert type(config.parallel) is ParallelConfig
    assert _plain(config)["parallel"] == {}


def test_the_number_of_processes_may_change_when_a_run_is_resumed_and_what_is_gathered_may_not(tmp_path: Path) -> None:
    def folder(*overrides: str) -> RunFolder:
        return RunFolder(tmp_path, _plain(composed(*overrides)), resume=True)

    with folder(*EIGHT, "parallel.gather=bfloat16"):
        (tmp_path / "metrics.jsonl").write_text("{}\n")
    folder(FSDP, "parallel.processes=2", "parallel.replicate=2", "parallel.gather=bfloat16").check()
    for other in ((), (FSDP, "parallel.processes=8")):
        with pytest.raises(RunFolderError, match=r"differing: parallel\.gather \(there bfloat16, here None\)"):
            folder(*other).check()


def test_a_run_from_before_there_were_several_processes_is_resumed(tmp_path: Path) -> None:
    before = _plain(composed())
    del before["parallel"]
    with RunFolder(tmp_path, before):
        (tmp_path / "metrics.jsonl").write_text("{}\n")
    for overrides in ((), (FSDP, "parallel.processes=2")):
        RunFolder(tmp_path, _plain(composed(*overrides)), resume=True).check()
