"""A teacher served by vLLM over HTTP; rollouts are scored while others are still being written."""

from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from functools import partial
from statistics import fmean
from typing import Any

from iwopd.errors import EngineError
from iwopd.models.batch import Window
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.scoring.prompt_logprobs import Likeliest, likeliest_of, scored_rollout
from iwopd.types import SAMPLED, Ids, Rollout, ScoredRollout, Signal
from iwopd.vllm.http import is_missing
from iwopd.vllm.servers import BadAnswer, Server, Servers

FIXED_PROMPT = list(range(3, 15))  # ids that every vocabulary has
SAME_MODEL = 0.2  # nats per token: above what numerics and batching make of one model's log-probs


class VllmServerTeacher(Teacher):
    """See `Teacher`.

    Args:
        servers: all serve the teacher.
        overlap: begin with a rollout as soon as it is expected.
        names: what the servers may call it, folders or hub names; empty where that is not compared.
        signal: what it will be asked for.

    Raises:
        EngineError: a server serves another model, or does not give the signal.
    """

    concurrent = True

    def __init__(self, servers: Servers, overlap: bool = True, names: Sequence[str] = (), signal: Signal = SAMPLED):
        self.servers = servers
        self.signal = signal
        self.overlap = overlap
        self.names = names
        # With the rollouts, so that no other can come to have the identity of one.
        self._under_way: dict[tuple[int, Signal], tuple[Rollout, Future[Any]]] = {}
        self._reference: list[float] | None = None
        try:
            self._check_model(servers.alive)
        except BaseException:
            self.close()
            raise

    def _check_model(self, servers: Sequence[Server]) -> None:
        """Every server must say that it serves the teacher, and score one fixed prompt as the others do, at any time.

        Raises:
            EngineError: one does not.
        """
        for server in servers:
            if self.names and not any(server.serves(name) for name in self.names):
                raise EngineError(
                    f"{self.servers.key}={server.url}: serves {server.root or server.model}, not the teacher "
                    f"{self.names[0]}; start it with that model, or if it is the same one under another name, set "
                    f"scoring.served_as={server.root or server.model}"
                )
            try:
                found = self._fixed_prompt(server)
            except EngineError:
                if server.alive or not self.servers.alive:
                    raise
                continue  # it is left out, until it is back
            self._reference = self._reference or found
            gap = fmean(abs(ours - theirs) for ours, theirs in zip(found, self._reference, strict=True))
            if not gap <= SAME_MODEL:
                raise EngineError(
                    f"{self.servers.key}={server.url}: scores a fixed prompt {gap:.2g} nats per token away from what "
                    f"{server.root or server.model} scored before; it serves other weights: start it with the teacher"
                )

    def _fixed_prompt(self, server: Server) -> list[float]:
        """Its log-probs of all tokens but the first, nats.

        Raises:
            EngineError: it gives none, or not the signal.
        """
        try:
            found = self.servers.complete_on(server, _body(FIXED_PROMPT), _read_fixed_prompt)
        except EngineError as error:
            if not is_missing(error.__cause__):
                raise
            raise EngineError(
                f"{self.servers.key}={server.url}: answers no completions, which loss.signal={self.signal.kind} needs; "
                "start it without --runner pooling, or use loss.signal=full"
            ) from error
        if self.signal.k:
            self._check_limit(server)
        return found

    def _check_limit(self, server: Server) -> None:
        """A server must give as many log-probs a token as the signal has.

        Raises:
            EngineError: it does not; says with which flag to start it.
        """
        k = self.signal.k

        def read(choice: dict[str, Any]) -> None:
            _likeliest(FIXED_PROMPT, k, choice)

        try:
            self.servers.complete_on(server, _body(FIXED_PROMPT, k), read)
        except EngineError as error:
            raise EngineError(
                f"{self.servers.key}={server.url}: does not give the {k} likeliest tokens of loss.top_k={k}: "
                f"{error.__cause__ or error}; start it with --max-logprobs {k}, or lower loss.top_k"
            ) from error

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """See `Teacher.expect`."""
        if self.overlap:
            self._under_way[id(rollout), signal] = rollout, self._submit(rollout, window, signal)

    def _submit(self, rollout: Rollout, window: Window, signal: Signal) -> "Future[Any]":
        """What `_record` makes a record of."""
        bounds = window(len(rollout.response_ids))
        ids = rollout.ids(bounds[1])
        return self.servers.submit(_body(ids, signal.k), len(ids), partial(_read, rollout, bounds, signal))

    def _record(self, rollout: Rollout, window: tuple[int, int], signal: Signal, answer: Any) -> ScoredRollout:  # noqa: ANN401  what `_submit` promises
        """In the caller's thread, as there may be something to compute."""
        return answer

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`.

        Raises:
            EngineError: no server is left, or none gives a usable answer.
            NonFiniteError: a log-prob is NaN or infinite; names the rollout.
        """
        if signal.kind == "full":
            self.head()  # says that there is none
        self._check_model(self.servers.revive())
        futures = [
            expected[1] if expected else self._submit(rollout, window, signal)
            for rollout in rollouts
            for expected in [self._under_way.pop((id(rollout), signal), None)]
        ]
        windows = [window(len(rollout.response_ids)) for rollout in rollouts]
        lengths = [len(rollout.prompt_ids) + stop for rollout, (_, stop) in zip(rollouts, windows, strict=True)]
        places = {future: place for place, future in enumerate(futures)}
        found = dict[int, ScoredRollout]()
        tokens, most = 0, sum(lengths)
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                place = places[future]
                found[place] = self._record(rollouts[place], windows[place], signal, future.result())
                tokens += lengths[place]
                progress(done, len(futures), tokens, most)
        finally:
            for future in futures:
                future.cancel()
        self._check_model(self.servers.alive)  # one may have been started anew meanwhile, with another model
        return [found[place] for place in range(len(rollouts))]

    def close(self) -> None:
        """Drop what is under way; the servers keep running."""
        self.servers.close()


def _body(ids: Sequence[int] | Ids, k: int = 0) -> dict[str, Any]:
    # One token is sampled because vLLM always samples; nobody looks at it.
    return {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}


def _read_fixed_prompt(choice: dict[str, Any]) -> list[float]:
    return _prompt_logprobs(FIXED_PROMPT, choice)


def _read(rollout: Rollout, window: tuple[int, int], signal: Signal, choice: dict[str, Any]) -> ScoredRollout:
    ids = rollout.ids(window[1]).tolist()
    logprobs = _prompt_logprobs(ids, choice)
    return scored_rollout(rollout, window, logprobs, _likeliest(ids, signal.k, choice) if signal.k else None)


def _likeliest(ids: Sequence[int], k: int, choice: dict[str, Any]) -> Likeliest:
    """Ids and log-probs [tokens, k] of the likeliest in the place of all tokens but the first."""
    try:
        return likeliest_of(choice["prompt_logprobs"][1:], ids[1:], k)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAnswer(f"prompt log-probs without the {k} likeliest tokens") from error


def _prompt_logprobs(ids: Sequence[int], choice: dict[str, Any]) -> list[float]:
    """Nats, of all tokens but the first."""
    given = choice.get("prompt_logprobs")
    if not isinstance(given, list) or len(given) != len(ids):
        raise BadAnswer(f"{len(given) if isinstance(given, list) else 'no'} prompt log-probs for {len(ids)} tokens")
    try:
        return [float(entry[str(token)]["logprob"]) for entry, token in zip(given[1:], ids[1:], strict=True)]
    except (KeyError, TypeError) as error:
        raise BadAnswer("prompt log-probs without one of the tokens asked for") from error
