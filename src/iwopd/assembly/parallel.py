"""Several processes, from config to objects."""

from contextlib import AbstractContextManager

import torch

from iwopd.config import Config, FsdpConfig
from iwopd.errors import ConfigError
from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import shard
from iwopd.parallel import World, processes, world
from iwopd.parallel.ranks import Ranks, opened


def opened_world(config: Config) -> AbstractContextManager[World]:
    """The processes that were started for this run, once they have found each other.

    Raises:
        ConfigError: they are not what `parallel` says.
        ProcessError: they do not find each other, or one of them fails while the world is open.
    """
    parallel, count = config.parallel, processes()
    if not isinstance(parallel, FsdpConfig):
        raise ConfigError(f"parallel=single: {count} processes were started; use parallel=fsdp, or start one")
    if count % parallel.replicate:
        raise ConfigError(
            f"parallel.replicate={parallel.replicate}: does not divide the {count} processes that were started; choose "
            "a divisor"
        )
    return opened(
        replicate=parallel.replicate,
        timeout_s=parallel.timeout_s,
        wait_s=parallel.wait_s,
        on_gpu=config.run.device != "cpu" and torch.cuda.is_available(),
    )


def shard_student(config: Config, lm: LanguageModel) -> None:
    """Divide the student's weights over the processes; with one, nothing."""
    ranks = world()
    if isinstance(ranks, Ranks) and isinstance(config.parallel, FsdpConfig):
        gather = config.parallel.gather
        shard(lm, ranks.mesh, gather=getattr(torch, gather) if gather else None)


def shard_teacher(config: Config, lm: LanguageModel) -> None:
    """Divide a teacher's weights over the processes, where `parallel.teacher` says so; its head stays whole."""
    ranks = world()
    if isinstance(ranks, Ranks) and isinstance(config.parallel, FsdpConfig) and config.parallel.teacher == "sharded":
        shard(lm, ranks.mesh, whole_head=True)
