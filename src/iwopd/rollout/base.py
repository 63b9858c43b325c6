"""What every rollout engine can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from iwopd.types import Prompt, Rollout

if TYPE_CHECKING:
    from iwopd.vllm.transfer import WeightSource

Finished = Callable[[Rollout], None]


class Progress(Protocol):
    """Receives how far a stage is."""

    def __call__(self, done: int, total: int, tokens: int = 0, most: int = 0, /) -> None:
        """Take note.

        Args:
            done: responses finished.
            total: all responses.
            tokens: so far, of unfinished responses too.
            most: tokens there can be in all; of responses that are sampled, each unfinished one counts at its longest.
        """
        ...


def no_progress(done: int, total: int, tokens: int = 0, most: int = 0, /) -> None:
    """Progress that nobody watches."""


def part_of(progress: Progress, place: int, count: int) -> Progress:
    """For the pass in place `place` of `count` over the same responses."""

    def tell(done: int, total: int, tokens: int = 0, most: int = 0, /) -> None:
        progress(place * total + done, count * total, place * most + tokens, count * most)

    return tell


def ignore_rollout(rollout: Rollout) -> None:
    """A finished rollout that nobody waits for."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution to sample from. temperature 0 is greedy; top_p 1 and top_k 0 leave it whole."""

    n: int = 1
    max_tokens: int = 16384
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def plain(self) -> bool:
        """True where the model's own distribution is sampled from."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


class UnderWay(Protocol):
    """Rollouts that an engine was asked for."""

    def collect(self, progress: Progress = no_progress) -> list[Rollout]:
        """All of them, prompt by prompt, once they are written. A wait that was interrupted may be taken up again."""
        ...


@dataclass(frozen=True)
class Written(UnderWay):
    """Rollouts that are written already."""

    rollouts: list[Rollout]

    def collect(self, progress: Progress = no_progress) -> list[Rollout]:
        """See `UnderWay.collect`."""
        return self.rollouts


class Engine(Protocol):
    """Samples responses; a context manager. Implementations: `hf`, `vllm`, `vllm_server`, `fake`."""

    has_own_weights: bool = False
    """True where the engine holds a copy of the student's weights, which may then differ from them."""

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
        """`sampling.n` rollouts per prompt, prompt by prompt.

        The randomness of each derives from (seed, stream, prompt, sample) alone; stream is the step, or "eval".

        Args:
            progress: see `Progress`.
            finished: called with each rollout as soon as it is whole, in the order they finish.
        """
        ...

    def send(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        finished: Finished = ignore_rollout,
    ) -> UnderWay:
        """Ask for the rollouts that `generate` gives with the weights that the engine has now, and do not wait.

        Until they are collected, nothing else may be asked of the engine. One that computes in this process, as this
        default has it, returns when they are written.

        Args:
            finished: see `generate`; may be called from another thread.
        """
        return Written(self.generate(prompts, sampling, seed=seed, stream=stream, finished=finished))

    def sync_weights(self, student: "WeightSource", version: int) -> None:
        """Take over the student's weights after `version` optimisation steps."""
        ...

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """Refuse what would report log-probs of another distribution than it samples from.

        Raises:
            ConfigError: says how to start it instead.
        """

    def load_weights(self, folder: str) -> None:
        """Take a model's weights from its files, where the engine was not made from them."""

    def reset_cache(self) -> None:
        """Forget what was computed for earlier prompts."""

    def sleep(self) -> None:
        """Hand back what GPU memory can be spared until the next `sync_weights` or `generate`."""

    def close(self) -> None:
        """Free what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
