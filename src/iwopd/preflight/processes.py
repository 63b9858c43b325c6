"""The processes of a training: as many as the config says, and each with a GPU where there are any."""

from iwopd.config import Config, FsdpConfig, VllmRolloutConfig
from iwopd.errors import ConfigError
from iwopd.machine import host
from iwopd.parallel.environment import Place, place


def starts_processes(config: Config, verb: str, place: Place | None) -> bool:
    """True for a process that starts those that train, and is none of them.

    Raises:
        ConfigError: one of several processes of a verb that is one process.
    """
    if place is not None and place.size > 1:
        if verb != "train":
            raise ConfigError(
                f"iwopd {verb}: is one process, and {place.size} were started (WORLD_SIZE); start it without torchrun "
                "or srun"
            )
        return False
    return verb == "train" and config.parallel.started > 1


def check_processes(config: Config) -> None:
    """Compare `parallel` with what torchrun or srun started, or with this machine.

    Raises:
        ConfigError: they do not fit.
    """
    parallel, started = config.parallel, place()
    several = started if started is not None and started.size > 1 else None
    if not isinstance(parallel, FsdpConfig):
        if several:
            raise ConfigError(
                f"parallel=single: {several.size} processes were started, and each would train alone; add parallel=fsdp"
            )
    elif several:
        _check_started(config, parallel, several)
    elif parallel.processes is not None:
        _check_here(config, parallel.processes)
    elif started is None:
        found = host.gpus()
        here = f" (this machine has {found} GPU{'s' if found > 1 else ''})" if found else ""
        raise ConfigError(
            f"parallel.processes=null: parallel=fsdp needs processes, and none were started; set "
            f"parallel.processes=N to start N here{here}, start with torchrun or srun, or use parallel=single"
        )


def _check_started(config: Config, parallel: FsdpConfig, started: Place) -> None:
    if parallel.processes not in (None, started.local_size):
        raise ConfigError(
            f"parallel.processes={parallel.processes}: {started.local_size} were started on this machine already "
            "(LOCAL_WORLD_SIZE); leave it out under torchrun and srun"
        )
    if started.size % parallel.replicate:
        raise ConfigError(
            f"parallel.replicate={parallel.replicate}: does not divide the {started.size} processes that were started; "
            "each copy of the model is sharded over an equal number of them, so choose a divisor"
        )
    if isinstance(config.rollout, VllmRolloutConfig) and started.local_size % config.rollout.engine.tensor_parallel:
        raise ConfigError(
            f"rollout.engine.tensor_parallel={config.rollout.engine.tensor_parallel}: does not divide the "
            f"{started.local_size} processes of this machine; choose a divisor, or 1 for an engine per process"
        )


def _check_here(config: Config, processes: int) -> None:
    found = host.gpus()
    if found and config.run.device != "cpu" and processes > found:
        raise ConfigError(
            f"parallel.processes={processes}: this machine has {found} GPU{'s' if found > 1 else ''}, and each process "
            f"needs one; use parallel.processes={found}, more machines with torchrun or srun, or run.device=cpu"
        )
