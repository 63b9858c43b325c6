"""A teacher served by vLLM over HTTP; rollouts are scored while others are still being written."""

from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from functools import partial
from typing import Any

from iwopd.batch import Window
from iwopd.engines.base import Progress, silent
from iwopd.teachers.base import Teacher
from iwopd.teachers.prompt_logprobs import scored_rollout
from iwopd.types import Rollout, ScoredRollout
from iwopd.vllm.servers import BadAnswer, Servers


class VllmServerTeacher(Teacher):
    """See `Teacher`.

    Args:
        servers: all serve the teacher.
        overlap: begin with a rollout as soon as it is expected.
    """

    def __init__(self, servers: Servers, overlap: bool = True):
        self.servers = servers
        self.overlap = overlap
        self._under_way: dict[int, Future[ScoredRollout]] = {}

    def expect(self, rollout: Rollout, window: Window) -> None:
        """See `Teacher.expect`."""
        if self.overlap:
            self._under_way[id(rollout)] = self._submit(rollout, window)

    def _submit(self, rollout: Rollout, window: Window) -> "Future[ScoredRollout]":
        bounds = window(len(rollout.response_ids))
        ids = rollout.prompt_ids + rollout.response_ids[: bounds[1]]
        # One token is sampled because vLLM always samples; nobody looks at it.
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        return self.servers.submit(body, len(ids), partial(_read, rollout, bounds, ids))

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, hidden: bool = False, progress: Progress = silent
    ) -> list[ScoredRollout]:
        """See `Teacher.score`.

        Raises:
            EngineError: no server is left, or none gives a usable answer.
            NonFiniteError: a log-prob is NaN or infinite; names the rollout.
        """
        if hidden:
            self.head()  # says that there is none
        self.servers.revive()
        under_way, self._under_way = self._under_way, {}
        futures = [under_way.pop(id(rollout), None) or self._submit(rollout, window) for rollout in rollouts]
        lengths = [len(rollout.prompt_ids) + window(len(rollout.response_ids))[1] for rollout in rollouts]
        places = {future: place for place, future in enumerate(futures)}
        tokens, most = 0, sum(lengths)
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                tokens += lengths[places[future]]
                progress(done, len(futures), tokens, most)
        finally:
            for future in (*futures, *under_way.values()):
                future.cancel()
        return [future.result() for future in futures]

    def close(self) -> None:
        """Drop what is under way; the servers go on."""
        self.servers.close()


def _read(rollout: Rollout, window: tuple[int, int], ids: Sequence[int], choice: dict[str, Any]) -> ScoredRollout:
    given = choice.get("prompt_logprobs")
    if not isinstance(given, list) or len(given) != len(ids):
        raise BadAnswer(f"{len(given) if isinstance(given, list) else 'no'} prompt log-probs for {len(ids)} tokens")
    try:
        logprobs = [float(entry[str(token)]["logprob"]) for entry, token in zip(given[1:], ids[1:], strict=True)]
    except (KeyError, TypeError) as error:
        raise BadAnswer("prompt log-probs without one of the tokens asked for") from error
    return scored_rollout(rollout, window, logprobs)
