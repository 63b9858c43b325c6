"""What the program sets before torch loads: threads that fit the machine, bounded caches, and what it leaves alone."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from support import forks
from support.paths import SOURCE, TESTS
from support.running import ONE_THREAD, SMALL

from iwopd.ablate.workers import Workers
from iwopd.config import (
    Config,
    EvalConfig,
    HfRolloutConfig,
    HfScoringConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
)
from iwopd.machine import host, runtime
from iwopd.weighting.uniform import Uniform

QUIET = runtime.NO_TELEMETRY
OURS = {
    "OMP_NUM_THREADS",
    *runtime.WAIT,
    *runtime.OTHER_WAITS,
    *runtime.CACHES,
    runtime.CHOSEN,
    runtime.WORKERS,
    *QUIET,
}
OURS |= {*runtime.VLLM, *runtime.DETERMINISTIC, *runtime.OFFLINE, *runtime.HYDRA}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine of eight cores without a GPU, where nothing is set; afterwards all is as it was."""
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key not in OURS})
    monkeypatch.setattr(host, "cores", lambda: 8)
    monkeypatch.setattr(host, "has_gpu", lambda: False)
    monkeypatch.setattr(host, "map_blocks_above", lambda size: True)
    monkeypatch.setattr(runtime, "current", runtime.current)
    monkeypatch.setitem(sys.modules, "torch", None)
    return os.environ


def config(student: str, teacher: str = "toy://smoke/teacher", **run: object) -> Config:
    return Config(
        student=StudentConfig(path=student),
        teacher=TeacherConfig(path=teacher),
        rollout=HfRolloutConfig(),
        scoring=HfScoringConfig(),
        weighting=Uniform(),
        run=RunConfig(**run),  # pyright: ignore[reportArgumentType]
    )


def model(folder: Path, parameters: int, dtype: str = "bfloat16") -> str:
    """A folder that looks like a model of so many parameters; its weights take no room on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": dtype}))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(parameters * (2 if dtype == "bfloat16" else 4))
    return str(folder)


TOY = "toy://smoke/student"


def test_a_toy_takes_one_thread_and_a_larger_model_all_cores(machine, tmp_path: Path) -> None:
    assert runtime.prepare(config(TOY), "train").threads == 1
    assert machine["OMP_NUM_THREADS"] == "1"
    small, large = model(tmp_path / "small", 1_000_000, "float32"), model(tmp_path / "large", 25_000_000)
    assert runtime.prepare(config(small), "train").threads == 1
    assert runtime.prepare(config(large), "train").threads == 8
    assert runtime.prepare(config(small, teacher=large), "train").threads == 8, "the teacher computes here too"
    assert runtime.prepare(config("someone/model"), "train").threads == 8, "of a hub model the size is not known"
    measured = replace(config(TOY), eval=EvalConfig(model=large))
    assert runtime.prepare(measured, "eval").threads == 8


def test_threads_of_all_workers_together_fit_the_cores(machine, tmp_path: Path) -> None:
    large = config(model(tmp_path / "large", 135_000_000))
    assert [runtime.prepare(large, "train", workers).threads for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    machine["IWOPD_WORKERS"] = "4"
    assert runtime.prepare(large, "train").threads == 2
    machine["OMP_NUM_THREADS"], machine[runtime.CHOSEN] = "8", ""
    assert runtime.prepare(large, "train").threads == 2, "the user's number is for one program"
    assert machine["OMP_NUM_THREADS"] == "2"


def test_what_the_user_has_set_stands(machine) -> None:
    machine |= QUIET | {"OMP_NUM_THREADS": "5", "GOMP_SPINCOUNT": "300", "LRU_CACHE_CAPACITY": "7"}
    found = runtime.prepare(config(TOY), "train")
    assert found.threads == 5
    assert dict(found.variables) == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(runtime.PRIMITIVES)}
    assert machine["LRU_CACHE_CAPACITY"] == "7"
    assert "OMP_WAIT_POLICY" not in machine
    assert str(found) == "5 threads on 8 cores; set: ONEDNN_PRIMITIVE_CACHE_CAPACITY=64"


def test_what_a_parent_of_this_program_chose_is_not_the_users(machine, tmp_path: Path) -> None:
    runtime.prepare(config(TOY), "ablate")
    machine["IWOPD_WORKERS"] = "2"
    found = runtime.prepare(config(model(tmp_path / "large", 135_000_000)), "train")
    assert found.threads == 4
    assert found.variables.keys() == {"OMP_NUM_THREADS", *runtime.WAIT, *runtime.CACHES, *QUIET}


def test_threads_are_left_to_torch_where_a_gpu_computes(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    assert runtime.prepare(config(TOY), "train").threads is None
    assert "OMP_NUM_THREADS" not in machine
    assert runtime.prepare(config(TOY, device="cpu"), "train").threads == 1


class FakeTorch(SimpleNamespace):
    """As much of torch as is set once it is loaded."""

    def use_deterministic_algorithms(self, mode: bool, *, warn_only: bool) -> None:
        self.mode = mode, warn_only


def test_deterministic_kernels_are_set_where_a_gpu_computes(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch(mode=None, utils=SimpleNamespace(deterministic=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    runtime.prepare(config(TOY, deterministic=False), "train")
    runtime.apply()
    assert (torch.mode, machine.get("CUBLAS_WORKSPACE_CONFIG")) == (None, None)
    found = runtime.prepare(config(TOY), "train")
    runtime.apply()
    assert (torch.mode, machine["CUBLAS_WORKSPACE_CONFIG"]) == ((True, True), ":4096:8")
    assert "threads as torch chooses on 8 cores; deterministic kernels; set: " in str(found)


def test_what_vllm_reads_is_set_where_an_engine_runs_in_this_process(machine) -> None:
    runtime.prepare(config(TOY), "train")
    assert not runtime.VLLM.keys() & machine.keys()
    machine["VLLM_CONFIGURE_LOGGING"] = "1"
    for engines in ({"rollout": VllmRolloutConfig()}, {"scoring": VllmScoringConfig()}):
        found = runtime.prepare(replace(config(TOY), **engines), "train")
        assert found.variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert "VLLM_CONFIGURE_LOGGING" not in found.variables
    assert machine["VLLM_CONFIGURE_LOGGING"] == "1", "the user's"


def test_offline_is_said(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    runtime.prepare(config(TOY), "train")
    runtime.go_offline()
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert machine["HF_DATASETS_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE=1" in str(runtime.current)


def test_the_environment_is_written_in_one_module() -> None:
    """Programs that graders start have an environment of their own, which they set themselves."""
    environment = r"os\.(environ(\[[^]]+\] =|\.(setdefault|update|clear|pop)\()|putenv)"
    sets = re.compile(rf"{environment}|set_num_threads\(|use_deterministic")
    found = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        if sets.search(file.read_text(encoding="utf-8"))
    }
    own = {f"evaluation/grading/{name}.py" for name in ("sandbox", "run_code")}
    # What vLLM changed; a message from the parent; threads while the CPU is measured.
    puts_back = {"vllm/quiet.py", "runs/interrupts.py", "doctor/cpu.py"}
    shell = {"cli.py"}  # what it asks to complete, as Hydra reads it
    ranks = {"parallel/environment.py", "parallel/ranks.py"}  # what torchrun would set, from Slurm's; the GPU of a rank
    assert found == {"machine/runtime.py", *own, *puts_back, *shell, *ranks}


def test_malloc_is_left_alone_where_the_user_tuned_it(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    monkeypatch.setattr(host, "map_blocks_above", sizes.append)
    runtime.prepare(config(TOY), "train")
    machine["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    runtime.prepare(config(TOY), "train")
    assert sizes == [runtime.MMAP_BYTES]


def test_a_resumed_run_takes_the_threads_it_began_with_or_says_that_it_cannot(machine, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text(json.dumps({"threads": 3}))
    resumed = config(TOY, dir=str(tmp_path), resume=True)
    found = runtime.prepare(resumed, "train")
    assert (found.threads, found.notes) == (3, ())
    found = runtime.prepare(resumed, "train", workers=4)
    assert found.threads == 1
    assert "began with 3 threads and resumes with 1 (2 cores for it here)" in found.notes[0]
    machine |= {"OMP_NUM_THREADS": "2", runtime.CHOSEN: ""}
    found = runtime.prepare(resumed, "train")
    assert found.threads == 2
    assert "began with 3 threads and resumes with 2 (OMP_NUM_THREADS)" in found.notes[0]
    assert runtime.prepare(config(TOY, dir=str(tmp_path)), "train").notes == (), "not resumed"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@pytest.mark.process
def test_two_workers_do_not_get_two_threads_each_on_two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(host.cores()))
    monkeypatch.setenv(runtime.CHOSEN, "")
    if forks.POSSIBLE:
        monkeypatch.setattr(subprocess, "Popen", forks.Popen)
    folders = [tmp_path / name for name in ("a", "b")]
    jobs = [((*SMALL, "run.steps=1", "eval.every=0", f"run.dir={folder}"), folder) for folder in folders]
    ended = dict[int, int]()
    Workers(2).run(jobs, lambda index, outcome: ended.update({index: outcome.status}))
    assert ended == {0: 0, 1: 0}
    for folder in folders:
        threads = json.loads((folder / "about.json").read_text())["threads"]
        assert threads == max(1, host.cores() // 2)
        said = f"{counted(threads, 'thread')} on {counted(host.cores(), 'core')}, shared by 2 processes"
        assert said in (folder / "train.log").read_text()
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
        assert all(50 < line[f"memory/{stage}_mib"] < 10_000 for stage in ("rollout", "score", "update"))


LENGTHS = """
import sys
from iwopd.machine import host, runtime
from iwopd.weighting.uniform import Uniform
from machine.test_runtime import TOY, config
if sys.argv[1] == "prepared":
    runtime.prepare(config(TOY), "train")
import torch
weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in ((192, 192), (64, 192), (512, 192), (192, 512))]
def products(length):
    for weight in weights:
        torch.randn(length, weight.shape[1], dtype=torch.bfloat16) @ weight.T
for length in range(64, 74):
    products(length)
before = host.resident_bytes()
for length in range(100, 300):
    products(length)
print((host.resident_bytes() - before) / 2**20)
"""


def growth(how: str) -> float:
    """MiB that products of 200 lengths leave behind, in a process of its own."""
    environment = {key: value for key, value in ONE_THREAD.items() if key not in OURS} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", LENGTHS, how], capture_output=True, text=True, env=environment, check=True
    )
    return float(done.stdout)


@pytest.mark.process
def test_products_of_ever_new_lengths_do_not_fill_memory() -> None:
    plain, prepared = growth("plain"), growth("prepared")
    if plain < 50:
        pytest.skip(f"this CPU's library keeps nothing for a length ({plain:.0f} MiB)")
    assert prepared < plain / 3
