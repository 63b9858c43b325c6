"""Sampling by several processes: each answers a share of the prompts, or one of them asks the servers; all get all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import gathered, led, taken
from iwopd.parallel import world
from iwopd.rollout.base import Engine, Finished, Progress, Sampling, UnderWay, ignore_rollout, no_progress
from iwopd.types import Prompt, Rollout
from iwopd.vllm.transfer import WeightSource


class DividedEngine(Engine):
    """An engine on every rank. Seeds derive from prompts and samples, so who answers which does not matter.

    Args:
        own: this rank's.
        model: what it samples from, if it has no weights of its own: gathered while it does.
        neighbours: ranks that share an engine (tensor parallelism): they answer the same prompts.
    """

    def __init__(self, own: Engine, model: LanguageModel | None = None, neighbours: int = 1):
        self.own = own
        self.model = model
        self.neighbours = neighbours
        self.has_own_weights = own.has_own_weights

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = no_progress,
        finished: Finished = ignore_rollout,
    ) -> list[Rollout]:
        """See `Engine.generate`; `finished` is called with this rank's."""
        ranks, engines = world(), world().size // self.neighbours
        mine = ranks.share(prompts, self.neighbours)

        def answer() -> list[Rollout]:
            if not mine:
                return []
            return self.own.generate(mine, sampling, seed=seed, stream=stream, progress=progress, finished=finished)

        with self._weights():
            made = ranks.gather(ranks.together(answer, stoppable=self.neighbours == 1))
        shares = [iter(share) for share in made[:: self.neighbours]]
        return [next(shares[place % engines]) for place in range(len(prompts)) for _ in range(sampling.n)]

    def sync_weights(self, student: WeightSource, version: int) -> None:
        """See `Engine.sync_weights`."""
        if not self.has_own_weights:
            self.own.sync_weights(student, version)
            return
        taken(student.named_weights(), lambda weights: self.own.sync_weights(_Once(weights), version))

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """See `Engine.check_logprobs`."""
        with self._weights():
            world().together(lambda: self.own.check_logprobs(sampling, prompt))

    def _weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self.model is None else gathered(self.model)

    def load_weights(self, folder: str) -> None:
        """See `Engine.load_weights`."""
        world().together(lambda: self.own.load_weights(folder))

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`."""
        world().together(self.own.reset_cache)

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        self.own.sleep()

    def close(self) -> None:
        """See `Engine.close`."""
        self.own.close()


class LedEngine(Engine):
    """An engine that the leader alone speaks to, such as servers'; all gather the weights that it sends.

    Args:
        make: called on the leader.
    """

    has_own_weights = True

    def __init__(self, make: Callable[[], Engine]):
        self._made = list[Engine]()
        world().alone(lambda: self._made.append(make()))

    @property
    def own(self) -> Engine:
        """The leader's."""
        return self._made[0]

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = no_progress,
        finished: Finished = ignore_rollout,
    ) -> list[Rollout]:
        """See `Engine.generate`; `finished` is called on the leader."""
        return world().alone(
            lambda: self.own.generate(prompts, sampling, seed=seed, stream=stream, progress=progress, finished=finished)
        )

    def send(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        finished: Finished = ignore_rollout,
    ) -> UnderWay:
        """See `Engine.send`; `finished` is called on the leader."""
        sent = list[UnderWay]()
        world().alone(
            lambda: sent.append(self.own.send(prompts, sampling, seed=seed, stream=stream, finished=finished))
        )
        return _Led(sent)

    def sync_weights(self, student: WeightSource, version: int) -> None:
        """See `Engine.sync_weights`: one pass over the weights, however many servers take them."""
        led(student.named_weights(), lambda weights: self.own.sync_weights(_Once(weights), version))

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """See `Engine.check_logprobs`."""
        world().alone(lambda: self.own.check_logprobs(sampling, prompt))

    def load_weights(self, folder: str) -> None:
        """See `Engine.load_weights`."""
        world().alone(lambda: self.own.load_weights(folder))

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`."""
        world().alone(lambda: self.own.reset_cache())

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        for own in self._made:
            own.sleep()

    def close(self) -> None:
        """See `Engine.close`."""
        for own in self._made:
            own.close()


class _Led(UnderWay):
    """What the leader has under way; all get it."""

    def __init__(self, sent: list[UnderWay]):
        self._sent = sent

    def collect(self, progress: Progress = no_progress) -> list[Rollout]:
        return world().alone(lambda: self._sent[0].collect(progress))


class _Once:
    """Weights that are being gathered, to be taken in the one pass that there is."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]):
        self._weights = weights

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self._weights
