"""What every teacher can do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from iwopd.models.batch import Window
from iwopd.models.student import Student
from iwopd.numerics.logprobs import Head
from iwopd.rollout.base import Progress, no_progress
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal


class Teacher(Protocol):
    """Scores rollouts; a context manager. Implementations: `hf`, `vllm`, `vllm_server`, `fake`.

    Attributes:
        concurrent: `expect` may be called from any thread, also while others are being scored.
    """

    concurrent: bool = False

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """The teacher's log-probs of each rollout's window, in the order given.

        Args:
            window: from a response's length to the ``[start, stop)`` that can have weight; nothing else is computed.
            signal: what the records are to hold of each token.
            progress: called with (finished, all) rollouts.

        Raises:
            ValueError: it cannot give that signal.
        """
        ...

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """This rollout will be scored: begin with it, where that can be done while others are still being written."""

    def head(self) -> Head:
        """From hidden states to logits, for the signal "full"; on the student's device."""
        raise ValueError(f"{type(self).__name__} gives log-probs only: it has no hidden states for the signal full")

    def heads(self) -> dict[str, Head]:
        """`head` of every teacher, by the name that its records have."""
        return {"": self.head()}

    def follow(self, student: Student) -> None:
        """The student has taken a step: take over what the weights have of it, where they are made of the student's."""

    def save(self, folder: Path) -> None:
        """Write what a resumed run cannot make again, into a checkpoint's existing `folder`."""

    def close(self) -> None:
        """Free what the teacher holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
