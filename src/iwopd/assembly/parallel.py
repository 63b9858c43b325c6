"""Several processes, from config to objects."""

from contextlib import AbstractContextManager

import torch

from iwopd.assembly.vllm import engine_dtype
from iwopd.config import Config, FsdpConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import shard
from iwopd.parallel import World, world
from iwopd.parallel.ranks import Ranks, opened


def opened_world(config: Config) -> AbstractContextManager[World]:
    """The processes that were started for this run, once they have found each other.

    Raises:
        ProcessError: they do not find each other, or one of them fails while the world is open.
    """
    parallel = config.parallel
    assert isinstance(parallel, FsdpConfig), "check_processes sees to it"
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
        shard(lm, ranks.mesh, gather=getattr(torch, engine_dtype(config, config.parallel.gather)))


def sharded_teacher(config: Config) -> bool:
    """Whether each process holds a share of a teacher in transformers."""
    return world().size > 1 and isinstance(config.parallel, FsdpConfig) and config.parallel.teacher == "sharded"


def shard_teacher(config: Config, lm: LanguageModel) -> None:
    """Divide a teacher's weights over the processes, where `parallel.teacher` says so; its head stays whole."""
    ranks = world()
    if isinstance(ranks, Ranks) and sharded_teacher(config):
        shard(lm, ranks.mesh, whole_head=True)
