"""Where a process stands among others, by the environments that torchrun, srun, sbatch and others give it."""

import os
from pathlib import Path

import pytest
from support.composing import composed
from support.running import iwopd, refused

from iwopd.errors import ConfigError
from iwopd.machine import host
from iwopd.parallel import environment
from iwopd.parallel.environment import NAMES, Place, adopt, place
from iwopd.preflight.processes import check_processes

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "ENVIRONMENT": "BATCH",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_")), environment.OUTPUT_KEPT]:
        monkeypatch.delenv(name, raising=False)
    for name in NAMES:  # what the program sets for itself is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch):
    def give(values: dict[str, str], **changed: str | None) -> None:
        for name, value in {**values, **changed}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return give


def test_torchruns_is_taken_as_it_is(given) -> None:
    given(TORCHRUN)
    assert adopt() == Place(5, 8, 1, 4)
    assert {name: os.environ[name] for name in NAMES} == TORCHRUN


@pytest.mark.parametrize(
    ("changed", "host_"),
    [
        ({}, "gpu07"),
        ({"SLURM_STEP_NODELIST": "gpu[7,9-12]"}, "gpu7"),
        ({"SLURM_STEP_NODELIST": "gpu[007-012]-ib,x1"}, "gpu007-ib"),
        ({"SLURM_STEP_NODELIST": "a.example,b.example"}, "a.example"),
        ({"SLURM_STEP_NODELIST": None, "SLURM_JOB_NODELIST": "n1,n2"}, "n1"),
        ({"SLURM_STEP_NODELIST": None}, "127.0.0.1"),
    ],
)
def test_a_step_of_slurm_gets_torchruns_variables(given, changed: dict, host_: str) -> None:
    given(SRUN, PATH="/nowhere", **changed)
    assert adopt() == Place(5, 8, 1, 4)
    wanted = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": host_}
    assert {name: os.environ[name] for name in NAMES[:-1]} == wanted
    assert os.environ["MASTER_PORT"] == "16711"
    assert adopt() == Place(5, 8, 1, 4), "as often as it is asked"


def test_scontrol_reads_slurms_list_of_hosts(given, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames odd[1-2]{x}" ] && echo first && echo second\n')
    scontrol.chmod(0o755)
    given(SRUN, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_STEP_NODELIST="odd[1-2]{x}")
    adopt()
    assert os.environ["MASTER_ADDR"] == "first"


def test_what_the_user_set_stands(given) -> None:
    given(SRUN, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    adopt()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "1234")


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({}, {}),
        (SRUN, {"SLURM_STEP_ID": None, "SLURM_PROCID": "0"}),  # a batch script, which is no task
        ({}, {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "4711"}),  # salloc
        ({}, {"WORLD_SIZE": "8"}),
    ],
)
def test_a_process_that_nobody_counts_is_alone(given, values: dict, changed: dict) -> None:
    given(values, **changed)
    assert adopt() is None
    assert "RANK" not in os.environ


def test_uneven_nodes(given) -> None:
    given(SRUN, SLURM_STEP_TASKS_PER_NODE="4(x2),1,3", SLURM_NTASKS="12", SLURM_NODEID="3", SLURM_PROCID="9")
    assert place() == Place(9, 12, 1, 3)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"RANK": "8"}, "RANK=8, WORLD_SIZE=8: process 1 of 4 on this machine cannot be"),
        ({"LOCAL_RANK": "4"}, "process 4 of 4 on this machine cannot be"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: not a number"),
        ({"MASTER_PORT": None}, "MASTER_PORT: not set"),
    ],
)
def test_what_contradicts_itself_is_refused(given, changed: dict, says: str) -> None:
    given(TORCHRUN, **changed)
    with pytest.raises(ConfigError, match=says):
        place()


FSDP = ("parallel=fsdp", "run.device=auto")


@pytest.mark.parametrize(
    ("overrides", "started", "says"),
    [
        ((), TORCHRUN, "parallel=single: 8 processes were started, and each would train alone; add parallel=fsdp"),
        ((), SRUN, "parallel=single: 8 processes were started"),
        (FSDP, {}, "parallel.processes=null: parallel=fsdp needs processes"),
        ((*FSDP, "parallel.processes=8"), TORCHRUN, "parallel.processes=8: 4 were started on this machine already"),
        ((*FSDP, "parallel.replicate=3"), TORCHRUN, "parallel.replicate=3: does not divide the 8 processes"),
        (
            (*FSDP, "rollout=vllm", "rollout.engine.tensor_parallel=8"),
            TORCHRUN,
            "rollout.engine.tensor_parallel=8: does not divide the 4 processes of this machine",
        ),
        (
            (*FSDP, "parallel.processes=4"),
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "parallel.processes=4: this machine has 2 GPUs",
        ),
    ],
)
def test_processes_that_do_not_fit_the_config_are_refused(
    given, overrides: tuple[str, ...], started: dict, says: str
) -> None:
    given(started)
    with pytest.raises(ConfigError, match=says):
        check_processes(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "started"),
    [
        ((), {}),
        ((), {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}),
        ((*FSDP, "parallel.replicate=2"), TORCHRUN),
        ((*FSDP, "parallel.processes=4", "parallel.replicate=2"), TORCHRUN),
        (FSDP, SRUN),
        ((*FSDP, "parallel.processes=1"), {}),
        ((*FSDP, "parallel.processes=2"), {"CUDA_VISIBLE_DEVICES": "2,3"}),
        ((*FSDP, "parallel.processes=4"), {"CUDA_VISIBLE_DEVICES": ""}),  # hidden: it trains on the CPU
        (("parallel=fsdp", "run.device=cpu", "parallel.processes=4"), {"CUDA_VISIBLE_DEVICES": "2,3"}),
        # A task of its own that starts processes, as submitit's.
        ((*FSDP, "parallel.processes=4"), {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                                           "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"}),
    ],
)  # fmt: skip
def test_those_that_fit_pass(given, overrides: tuple[str, ...], started: dict) -> None:
    given(started)
    check_processes(composed(*overrides))


def test_gpus_are_counted_as_cuda_does(given) -> None:
    for visible, count in (("0,1", 2), ("", 0), ("-1", 0), ("3,-1,2", 1), ("GPU-a, GPU-b", 2)):
        given({"CUDA_VISIBLE_DEVICES": visible})
        assert host.gpus() == count


@pytest.mark.cli
def test_a_mistake_is_said_by_the_leader_alone(
    given, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwopd.launch.LEADER_FIRST", 0.0)
    mistakes = (["weighting.gamma=-1"], ["parallel=fsdp", "parallel.replicate=3"], [])
    for started in (TORCHRUN, SRUN):
        for mistake in mistakes:
            given(started, RANK="0", LOCAL_RANK="0", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
            refused(capsys, "train", *mistake)
            given(started, RANK=started.get("RANK"), SLURM_PROCID="5", LOCAL_RANK=started.get("LOCAL_RANK"))
            assert iwopd("train", *mistake) == 2
            assert capsys.readouterr().err == ""
            for name in NAMES:
                given({name: ""})
                given({}, **{name: None})


@pytest.mark.cli
@pytest.mark.parametrize("verb", ["ablate", "diagnose", "doctor"])
def test_a_verb_of_one_process_says_so(verb: str, given, capsys: pytest.CaptureFixture[str]) -> None:
    given(TORCHRUN, RANK="0", LOCAL_RANK="0")
    assert f"iwopd {verb}: is one process, and 8 were started" in refused(capsys, verb)


@pytest.mark.process
def test_a_study_of_runs_that_nobody_starts_is_refused_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "ablate", "+experiment=smoke_study", "parallel=fsdp", f"run.dir={tmp_path / 's'}")
    assert "parallel.processes=null: parallel=fsdp needs processes, and none were started" in line
    arms = "ablate.arms=[uniform,{name: two, weighting: uniform, parallel: fsdp}]"
    line = refused(capsys, "ablate", "+experiment=smoke_study", arms, f"run.dir={tmp_path / 's'}")
    assert "ablate.arms=two: parallel.processes=null" in line
