"""Rollouts that servers were asked for: each is made once, in whichever thread comes first."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Self

from iwopd.errors import IwopdError
from iwopd.rollout.base import Finished, Progress, Sampling, UnderWay, ignore_rollout, no_progress
from iwopd.rollout.records import Answer, make_rollout
from iwopd.rollout.tally import Tally
from iwopd.types import Prompt, Rollout


class Requests(UnderWay):
    """See `UnderWay`.

    Args:
        asked: prompts, each with the index of the sample.
        answers: to them, in the same order.
        version: optimiser steps of the student that answers, as it was when the requests were sent.
        check: called when all have come; raises if another student may have answered.
    """

    def __init__(
        self,
        asked: Sequence[tuple[Prompt, int]],
        answers: "Sequence[Future[Answer]]",
        sampling: Sampling,
        version: int,
        check: Callable[[], None],
    ):
        self.asked = asked
        self.answers = answers
        self.sampling = sampling
        self.version = version
        self.check = check
        self._made: dict[int, Rollout] = {}
        self._lock = Lock()

    def tell(self, finished: Finished) -> Self:
        """Have `finished` called with each rollout as soon as it is whole, from the thread that its answer comes in."""

        def answered(place: int, answer: "Future[Answer]") -> None:
            if answer.cancelled() or answer.exception() is not None:
                return
            with suppress(IwopdError):  # `collect` raises it, where it can be handled
                self._rollout(place, finished)

        for place, answer in enumerate(self.answers):
            answer.add_done_callback(partial(answered, place))
        return self

    def collect(self, progress: Progress = no_progress, finished: Finished = ignore_rollout) -> list[Rollout]:
        """See `UnderWay.collect`.

        Args:
            finished: called with each rollout that `tell` has told nobody of.

        Raises:
            EngineError: no server is left, or one serves other weights than this run's.
            NonFiniteError: log-probs are NaN or infinite.
        """
        places = {answer: place for place, answer in enumerate(self.answers)}
        tally = Tally(len(self.answers), self.sampling.max_tokens, progress)
        for answer in as_completed(self.answers):
            tally.keep(1, len(self._rollout(places[answer], finished).response_ids))
        self.check()
        return [self._made[place] for place in range(len(self.answers))]

    def cancel(self) -> None:
        """Drop what has not come."""
        for answer in self.answers:
            answer.cancel()

    def _rollout(self, place: int, finished: Finished) -> Rollout:
        """The same object for all who ask: a teacher recognises by it what it expects."""
        with self._lock:
            if place not in self._made:
                prompt, sample = self.asked[place]
                answer = self.answers[place].result()
                self._made[place] = make_rollout(prompt, sample, answer, self.sampling, self.version)
                finished(self._made[place])
            return self._made[place]
