"""What every rollout engine can do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iwopd.types import Prompt, Rollout

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution to sample from. temperature 0 is greedy; top_p 1 and top_k 0 leave it whole."""

    n: int = 1
    max_tokens: int = 16384
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Engine(Protocol):
    """Samples responses; a context manager. Implementations: `hf`, `fake`."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = silent,
    ) -> list[Rollout]:
        """`sampling.n` rollouts per prompt, prompt by prompt.

        The randomness of each derives from (seed, stream, prompt, sample) alone; stream is the step, or "eval".
        `progress` is told (finished, all) sequences.
        """
        ...

    def sync_weights(self, student: Any, version: int) -> None:
        """Take over the student's weights after `version` optimisation steps."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *exception: object) -> None: ...
