"""All that the program sets for its whole process: environment variables, threads and how they wait, caches, malloc,
deterministic kernels. Nothing else sets any of it.

`before_hydra` comes first, `prepare` once the config is known and torch is not loaded, `apply` once it is. What the
user has set stays. What was chosen is in the log and in about.json, which keeps the number of threads too, because sums
over another number of them are rounded otherwise.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iwopd.config import Config, VllmRolloutConfig, VllmScoringConfig, VllmServerScoringConfig
from iwopd.config.models import SELF
from iwopd.machine import host
from iwopd.toy import is_toy
from iwopd.tracking import chosen as chosen_trackers

log = logging.getLogger(__name__)

# In the environment of processes that this program starts:
CHOSEN = "IWOPD_RUNTIME"  # the variables that it chose for itself; its children choose for themselves
WORKERS = "IWOPD_WORKERS"  # how many training processes share the machine, the child one of them
RANKS = "LOCAL_WORLD_SIZE"  # the same, of those that torchrun or srun started

# oneDNN compiles a primitive for every shape of a product and keeps it, in PyTorch's cache and in its own, by default
# 1,024 in each. Those of one pass must find room (about 20); a new one takes about a millisecond.
PRIMITIVES, PRIMITIVE_BYTES = 64, 2**19
CACHES = {"LRU_CACHE_CAPACITY": str(PRIMITIVES), "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRIMITIVES)}
# Threads that wait for the next product spin, milliseconds with GNU's OpenMP and 200 of them with Intel's. Beside
# another program that holds up the very threads they wait for. To sleep instead costs a model worth several threads
# some percent of a step.
WAIT = {"OMP_WAIT_POLICY": "passive"}
# Libraries report to nobody: vLLM, the Hugging Face hub, MLflow, wandb's crash reports. What is uploaded on purpose
# (a tracker's metrics, push) does not depend on it.
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MLFLOW = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # over our own lines
# Hydra prints an error over several lines unless asked to raise it; the program makes one line of it.
HYDRA = {"HYDRA_FULL_ERROR": "1"}
# Read by vLLM when it is imported or started, for engines in this process.
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process: weights are handed over as they are
    "VLLM_CONFIGURE_LOGGING": "0",  # its log goes to a file, see `iwopd.vllm.in_process`
    "TOKENIZERS_PARALLELISM": "false",
}
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it cuBLAS may choose another sum at every run
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
OTHER_WAITS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # the user's, which would contradict it
SMALL = 10_000_000  # parameters: products of smaller models are over before a second thread has begun
MMAP_BYTES = 2**22  # blocks of so many bytes go back to the system when they are freed


@dataclass(frozen=True)
class Runtime:
    """What was chosen.

    Attributes:
        threads: of this process, for one product; None where they are left to torch.
        cores: that this process may use.
        workers: processes that share them.
        variables: set by the program, not by the user.
        deterministic: only kernels that give the same bits at every run; on a GPU.
        notes: what should be said about it.
    """

    threads: int | None = None
    cores: int = 1
    workers: int = 1
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    deterministic: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        shared = f", shared by {self.workers} processes" if self.workers > 1 else ""
        set_here = ", ".join(f"{name}={value}" for name, value in self.variables.items())
        threads = "threads as torch chooses" if self.threads is None else _count(self.threads, "thread")
        kernels = "; deterministic kernels" if self.deterministic else ""
        where = f"{threads} on {_count(self.cores, 'core')}{shared}{kernels}"
        return f"{where}; set: {set_here}" if set_here else where


current = Runtime()


def before_hydra() -> None:
    """Set what Hydra reads before there is a config."""
    for name, value in HYDRA.items():
        os.environ.setdefault(name, value)


def prepare(config: Config, verb: str, workers: int | None = None) -> Runtime:
    """Set this process up for a verb, before torch is imported; afterwards, as in a sweep within one process, only the
    number of threads can change. What was chosen is `current` from then on.

    Args:
        workers: processes that share the cores; None for what the process that started this one says, else 1.
    """
    global current
    ours = os.environ.get(CHOSEN, "").split(",")
    given = {name: value for name, value in os.environ.items() if name not in ours}
    variables = {name: value for name, value in CACHES.items() if name not in given}
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in given):
        host.map_blocks_above(MMAP_BYTES)
    cores, sharing = host.cores(), workers or _whole(given.get(WORKERS)) or _whole(given.get(RANKS)) or 1
    threads, notes = None, ()
    gpu = config.run.device != "cpu" and host.has_gpu()
    chosen = NO_TELEMETRY | (MLFLOW if any(each.name == "mlflow" for each in chosen_trackers(config.tracking)) else {})
    if isinstance(config.rollout, VllmRolloutConfig) or isinstance(config.scoring, VllmScoringConfig):
        chosen = chosen | VLLM
    if gpu and config.run.deterministic:
        chosen = chosen | DETERMINISTIC
    variables |= {name: value for name, value in chosen.items() if name not in given}
    if not gpu:
        threads, notes = _threads(config, verb, _whole(given.get("OMP_NUM_THREADS")), max(1, cores // sharing), sharing)
        if given.get("OMP_NUM_THREADS") != str(threads):
            variables["OMP_NUM_THREADS"] = str(threads)
        if not given.keys() & {*WAIT, *OTHER_WAITS}:
            variables |= WAIT
    os.environ.update(variables)
    os.environ[CHOSEN] = ",".join(variables)
    torch: Any = sys.modules.get("torch")  # not imported here: all this must come before
    if torch is not None and threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    current = Runtime(threads, cores, sharing, variables, gpu and config.run.deterministic, notes)
    return current


def apply() -> None:
    """Set what can only be set once torch is loaded; to be called before a model is."""
    if current.deterministic:
        torch: Any = sys.modules["torch"]
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def go_offline() -> None:
    """From here on nothing is asked of the Hugging Face hub, which cannot be reached: its cache serves."""
    global current
    os.environ.update(OFFLINE)
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:  # which reads the variable on import
        constants.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    current = replace(current, variables={**current.variables, **OFFLINE})


def report() -> None:
    """Say in the log what was chosen."""
    log.info("%s", current)
    for note in current.notes:
        log.warning("%s", note)


def _threads(config: Config, verb: str, users: int | None, share: int, sharing: int) -> tuple[int, tuple[str, ...]]:
    """Threads for one product, and what should be said about them.

    Args:
        users: what the user's environment says.
        share: cores for each of the processes.
        sharing: how many they are.
    """
    if users is not None and (sharing == 1 or users <= share):
        wanted = users
    elif users is not None:
        wanted = share
    else:
        size = _largest(config, verb)
        wanted = 1 if size is not None and size < SMALL else share
    began = _began_with(config)
    if began is None or began == wanted:
        return wanted, ()
    if users is None and began <= share:
        return began, ()
    chosen = "OMP_NUM_THREADS" if users is not None else f"{_count(share, 'core')} for it here"
    return wanted, (
        f"this run began with {_count(began, 'thread')} and resumes with {wanted} ({chosen}): sums are rounded "
        f"otherwise, so it will not end in the same bits as without the stop; OMP_NUM_THREADS={began} would",
    )


def _began_with(config: Config) -> int | None:
    """Threads that a run which is resumed began with."""
    if not config.run.resume or config.run.dir is None:
        return None
    try:
        found = json.loads((Path(config.run.dir).expanduser() / "about.json").read_text()).get("threads")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _largest(config: Config, verb: str) -> int | None:
    """Parameters of the largest model that computes in this process; None where it is not known before it loads."""
    if verb == "eval":
        paths = [config.eval.model]
    elif isinstance(config.scoring, VllmServerScoringConfig):
        paths = [config.student.path]
    else:
        teachers = [config.teacher.path, *(entry.path for entry in config.teachers.values())]
        paths = [config.student.path, *(path for path in teachers if path != SELF)]
    sizes = [_parameters(path) for path in paths if path is not None]
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) and known else None


def _parameters(path: str) -> int | None:
    """Of a model in a folder, by the bytes of its weights; 0 for a toy, which are all small."""
    if is_toy(path):
        return 0
    folder = Path(path).expanduser()
    try:
        files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth")]
        config = json.loads((folder / "config.json").read_text())
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        return sum(file.stat().st_size for file in files) // (2 if "16" in dtype else 4) or None
    except (OSError, ValueError, AttributeError):
        return None


def _whole(text: str | None) -> int | None:
    """A number of at least 1; OMP_NUM_THREADS may also be a list, of which the first counts here."""
    first = (text or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
