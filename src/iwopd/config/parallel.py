"""How many processes train one student (`parallel`): one, or several with FSDP2."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iwopd.config.engines import HfScoringConfig, VllmRolloutConfig, VllmScoringConfig, VllmServerRolloutConfig
from iwopd.config.models import ScorerConfig
from iwopd.setting import DTYPES, setting

if TYPE_CHECKING:
    from iwopd.config import Config


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Processes of a training; this one: a single process."""

    @property
    def started(self) -> int:
        """Processes that `iwopd train` starts on this machine."""
        return 1


@dataclass(kw_only=True, slots=True)
class FsdpConfig(ParallelConfig):
    """Several processes, one per GPU, over which weights, gradients and Adam's moments are sharded (FSDP2).

    Only `iwopd train` (and the runs of `iwopd ablate`) uses them; other verbs are one process each.
    """

    processes: int | None = setting(
        None, "processes to start on this machine, one per GPU; null where torchrun or srun starts them", low=1
    )
    replicate: int = setting(
        1,
        "copies of the sharded model (HSDP): each copy is sharded over processes / replicate neighbours, so that "
        "weights are gathered within a machine and only gradients travel between them; divides the processes",
        low=1,
    )
    gather: str | None = setting(
        None,
        "dtype in which parameters are gathered for a pass, and gradients of a block made; null for what the student "
        "computes in, bfloat16 with optim.autocast. Weights, sums of gradients and Adam's moments keep student.dtype",
        choices=DTYPES,
    )
    reshard: bool = setting(
        True, "free the gathered parameters of a block after its forward; false keeps all until backward: less traffic"
    )
    teacher: str = setting(
        "whole",
        "with scoring=hf: each process holds the whole teacher (see teacher.offload), or a share of it",
        choices=("whole", "sharded"),
    )
    timeout_s: float = setting(
        1200.0,
        "longest wait for the other processes within a pass, seconds; one that takes longer ends the run",
        above=0,
    )
    wait_s: float = setting(
        14400.0, "the same where one process works alone: answers of servers, grading, saving, seconds", above=0
    )

    @property
    def started(self) -> int:
        """Processes that `iwopd train` starts on this machine; 1 where others start them."""
        return self.processes or 1


def parallel_problems(config: "Config") -> Iterator[str]:
    """Settings that several processes cannot keep: one line each."""
    parallel = config.parallel
    if not isinstance(parallel, FsdpConfig):
        return
    count = parallel.processes
    if count is not None and count % parallel.replicate:
        yield (
            f"parallel.replicate={parallel.replicate}: does not divide parallel.processes={count}; each copy of the "
            "model is sharded over an equal number of processes, so choose a divisor"
        )
    yield from _scoring_problems(config, parallel)
    if count == 1:
        return
    for key, device in (
        ("run.device", config.run.device),
        *((f"{key}.device", each.device) for key, each in _scorers(config)),
    ):
        if device is not None and device.startswith("cuda:"):
            yield (
                f"{key}={device}: each process of parallel=fsdp takes the GPU of its number; use cuda, or choose GPUs "
                "with the environment variable CUDA_VISIBLE_DEVICES"
            )
        if device == "mps":
            yield f"{key}=mps: several processes meet over CUDA or on CPUs; use parallel=single, or {key}=cpu"
    if isinstance(config.rollout, VllmServerRolloutConfig) and config.rollout.sync != "file":
        yield (
            f"rollout.sync={config.rollout.sync}: several processes gather the weights once for all servers, which "
            "read them from a file; use rollout.sync=file, with rollout.sync_dir on a file system that they share"
        )
    if isinstance(config.rollout, VllmRolloutConfig) and count is not None:
        share = config.rollout.engine.tensor_parallel
        if count % share:
            yield (
                f"rollout.engine.tensor_parallel={share}: does not divide parallel.processes={count}, and each engine "
                "is split over neighbouring processes; choose a divisor, or 1 for an engine per process"
            )


def _scoring_problems(config: "Config", parallel: FsdpConfig) -> Iterator[str]:
    scoring = config.scoring
    if isinstance(scoring, VllmScoringConfig) and parallel.processes != 1:
        yield (
            "scoring=vllm: one process has the teacher's engine, and parallel=fsdp has several; use "
            "scoring=vllm_server, or scoring=hf with teacher.offload=true or parallel.teacher=sharded"
        )
    if parallel.teacher != "sharded":
        return
    if not isinstance(scoring, HfScoringConfig):
        yield (
            "parallel.teacher=sharded: the teacher is not in transformers in these processes; use scoring=hf, or "
            "leave it out"
        )
    for key, scorer in _scorers(config):
        if scorer.offload:
            yield (
                f"{key}.offload=true: a sharded model (parallel.teacher=sharded) stays on the GPUs; use "
                f"{key}.offload=false, or parallel.teacher=whole"
            )


def _scorers(config: "Config") -> Iterator[tuple[str, ScorerConfig]]:
    """Keys and sections of the models that score."""
    yield "teacher", config.teacher
    yield from ((f"teachers.{name}", each) for name, each in config.teachers.items())
    if config.loss.exopd_lambda != 1:
        yield "base", config.base
