"""A world of several processes over torch.distributed, however they were started.

Two groups: the collectives of passes through sharded models, which follow each other in seconds, and the control group
of gloo, in which a rank may wait for hours while others sample, grade or save.
"""

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from iwopd.errors import IwopdError, OutOfMemoryError, ProcessError, first_line
from iwopd.parallel.deal import deal
from iwopd.parallel.world import World, entered, processes, world

Item = TypeVar("Item")
FAILED = "failed"  # key of the store: who was the first to fail, and why
STARTING = timedelta(minutes=10)  # for all processes to have found each other


@dataclass
class _Outcome:
    """What a rank has to say after a call that all make."""

    value: object = None
    error: BaseException | None = None


class Ranks(World):
    """One of several processes. See `World`.

    Args:
        store: where processes leave notes for each other, alive or not.
        mesh: of the ranks, for sharding: one dimension, or (replicate, shard).
        limits: how long a collective call may take, by the fields of `parallel`: "timeout_s" in a pass, "wait_s" in the
            control group.
    """

    def __init__(self, store: Store, mesh: DeviceMesh, limits: Mapping[str, timedelta]):
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.mesh = mesh
        self._store = store
        self.limits = limits
        self._control = dist.new_group(backend="gloo", timeout=limits["wait_s"])
        self._calls = 0

    def gather(self, item: Item) -> list[Item]:
        """See `World.gather`.

        Raises:
            ProcessError: another process is gone or does not answer; says why, where that is known.
        """
        found: list[object] = [None] * self.size
        self._calls += 1
        try:
            self._store.set(f"call/{self.rank}", str(self._calls))
            dist.all_gather_object(found, item, group=self._control)
        except RuntimeError as error:
            raise self.lost(error, "wait_s") from error
        found[self.rank] = item  # the very object: a teacher recognises the rollouts that it expects
        return found  # pyright: ignore[reportReturnType]

    def together(self, function: Callable[[], Item], *, stoppable: bool = False) -> Item:
        """See `World.together`."""
        own = self._outcome(function, stoppable)
        self._raise_first(own, self.gather(_Outcome(error=_portable(own.error))))
        return own.value  # pyright: ignore[reportReturnType]

    def alone(self, function: Callable[[], Item]) -> Item:
        """See `World.alone`. What the leader calls meanwhile that would be for all is for itself, as none else is
        there to take part."""

        def apart() -> Item:
            with entered(World()):
                return function()

        own = self._outcome(apart, stoppable=True) if self.leader else _Outcome()
        found = self.gather(_Outcome(own.value, _portable(own.error)))
        self._raise_first(own, found)
        return found[0].value  # pyright: ignore[reportReturnType]

    def passes(
        self,
        groups: Sequence[Sequence[int]],
        lengths: Sequence[int],
        make: Callable[[list[int]], None],
        idle: Callable[[], None],
    ) -> None:
        """See `World.passes`. An IwopdError waits until all passes are made: the other ranks need this one for theirs.
        Any other error, such as memory that is full, leaves at once; the others learn of it when they miss this rank.
        """
        error: IwopdError | None = None
        for group in deal(groups, lengths, self.size)[self.rank]:
            if not group or error:
                idle()
                continue
            try:
                make(group)
            except OutOfMemoryError:  # in the midst of a pass, which the others cannot finish with this rank
                raise
            except IwopdError as found:
                error = found
        self._raise_first(_Outcome(error=error), self.gather(_Outcome(error=_portable(error))))

    def _outcome(self, function: Callable[[], object], stoppable: bool) -> _Outcome:
        try:
            with self.stoppable() if stoppable else nullcontext():
                return _Outcome(function())
        except (Exception, KeyboardInterrupt) as error:
            return _Outcome(error=error)

    def _raise_first(self, own: _Outcome, outcomes: list[_Outcome]) -> None:
        """Raise the error of the lowest rank that has one, on all of them."""
        for rank, outcome in enumerate(outcomes):
            if outcome.error is not None:
                raise own.error if rank == self.rank and own.error is not None else outcome.error

    # ------------------------------------------------------------------------------------------ when one fails

    def failed(self, error: BaseException) -> None:
        """Leave a note of why this process ends, unless one was left before."""
        if isinstance(error, ProcessError):
            return
        said = first_line(error) if isinstance(error, IwopdError) else f"{type(error).__name__}: {first_line(error)}"
        note = json.dumps({"rank": self.rank, "reason": said})
        with suppress(RuntimeError):  # the store may be gone with the leader
            self._store.compare_set(FAILED, "", note)

    def lost(self, error: Exception, limit: str = "timeout_s") -> ProcessError:
        """The error to raise where a collective call failed.

        Args:
            limit: the field of `parallel` that says how long such a call may take.
        """
        reason, who = None, "another"
        with suppress(RuntimeError):  # the store is gone with the leader
            if self._store.check([FAILED]):
                note = json.loads(self._store.get(FAILED))
                reason = f"process {note['rank']} of {self.size} failed: {note['reason']}"
            elif late := self._late():
                who = f"process {', '.join(map(str, late))}"
        if reason is None and "imed out" in str(error):
            reason = (
                f"{who} of the {self.size} processes did not answer within {self.limits[limit].total_seconds():.0f} s; "
                f"if its work takes so long, raise parallel.{limit}"
            )
        elif reason is None:
            reason = (
                f"{who} of the {self.size} processes ended without a word; it may have been killed, by the system "
                "where memory ran out"
            )
        return ProcessError(reason)

    def _late(self) -> list[int]:
        """Ranks that did not come to the call that this one waits in."""
        calls = [
            int(self._store.get(f"call/{rank}")) if self._store.check([f"call/{rank}"]) else 0
            for rank in range(self.size)
        ]
        return [rank for rank, count in enumerate(calls) if count < self._calls]


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or one of its name and message where it cannot be sent."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")  # pyright: ignore[reportArgumentType]
    return error


@contextmanager
def opened(*, replicate: int, timeout_s: float, wait_s: float, on_gpu: bool) -> Iterator[World]:
    """The world that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); a world of one
    without it.

    Args:
        replicate: copies of a sharded model, over which ranks are divided.
        timeout_s: seconds that a collective of a pass may take.
        wait_s: seconds that a rank may wait in the control group.
        on_gpu: each process has the GPU of its LOCAL_RANK.

    Raises:
        ProcessError: the processes do not find each other, or another one failed.
    """
    if processes() == 1:
        yield World()
        return
    limits = {"timeout_s": timedelta(seconds=timeout_s), "wait_s": timedelta(seconds=wait_s)}
    with entered(_open(replicate, limits, on_gpu)) as ranks:
        assert isinstance(ranks, Ranks)
        try:
            yield ranks
            ranks.gather(None)  # nobody leaves, and takes the store along, while others still have to say something
        except RuntimeError as error:
            if isinstance(error, IwopdError) or not _of_collectives(error):
                ranks.failed(error)
                raise
            raise ranks.lost(error) from error
        except BaseException as error:
            ranks.failed(error)
            raise
        else:
            if dist.is_initialized():
                dist.destroy_process_group()


def _open(replicate: int, limits: Mapping[str, timedelta], on_gpu: bool) -> Ranks:
    if on_gpu:
        place = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()  # srun may show each task one GPU
        os.environ["LOCAL_RANK"] = str(place)  # vLLM takes that device, too
        torch.cuda.set_device(place)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=STARTING)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore("groups", store),
            rank=rank,
            world_size=size,
            timeout=limits["timeout_s"],
        )
        shape, names = (
            ((replicate, size // replicate), ("replicate", "shard")) if replicate > 1 else ((size,), ("shard",))
        )
        mesh = init_device_mesh("cuda" if on_gpu else "cpu", shape, mesh_dim_names=names)
        return Ranks(PrefixStore("notes", store), mesh, limits)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ProcessError(
            f"the processes did not find each other at MASTER_ADDR:MASTER_PORT={where} ({first_line(error)}); see that "
            "all were started and that the port is free"
        ) from error


@contextmanager
def groups_kept() -> Iterator[None]:
    """While the block lasts, nobody takes the world's process groups down: vLLM's shutdown would, whoever made them.
    Those that vLLM makes for itself in a world of one it may."""
    if world().size == 1:
        yield
        return
    found = dist.destroy_process_group
    dist.destroy_process_group = lambda *_, **__: None
    try:
        yield
    finally:
        dist.destroy_process_group = found


def _of_collectives(error: RuntimeError) -> bool:
    """Whether it is what gloo or NCCL raise when another process is gone."""
    said = str(error)
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "Gloo", "NCCL", "Connection"))
