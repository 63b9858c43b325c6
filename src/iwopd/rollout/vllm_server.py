"""Sampling with vLLM servers; weights reach them through their own endpoints, and versions are checked."""

import logging
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iwopd.errors import ConfigError, EngineError
from iwopd.rollout.base import Engine, Finished, Progress, Sampling, UnderWay, ignore_rollout, no_progress
from iwopd.rollout.records import Answer
from iwopd.rollout.requests import Requests
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout, as_ids, as_logprobs
from iwopd.vllm.servers import BadAnswer, Server, Servers
from iwopd.vllm.transfer import WeightSource, WeightTransport

log = logging.getLogger(__name__)

# Hands one server the weights last published.
Send = Callable[[Server], None]


class VllmServerEngine(Engine):
    """See `Engine`.

    Args:
        servers: where to sample.
        stop_ids: end-of-sequence token ids.
        route: how weights reach the servers.
        vocabulary: only ids below this are sampled; None for all the model has.
        rows: ids that the model has, where `vocabulary` is given.
    """

    has_own_weights = True

    def __init__(
        self,
        servers: Servers,
        stop_ids: Sequence[int],
        route: WeightTransport,
        vocabulary: int | None = None,
        rows: int | None = None,
    ):
        self.servers = servers
        self.stop_ids = list(stop_ids)
        self.route = route
        self.vocabulary = vocabulary
        self.rows = rows
        self.version = 0
        self._name = uuid.uuid4().hex[:8]  # another run that uses the same servers must not pass for this one
        self._send: Send | None = None

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
        """See `Engine.generate`.

        Raises:
            EngineError: no server is left, or one serves other weights than this run's.
            NonFiniteError: log-probs are NaN or infinite.
        """
        asked = self._ask(prompts, sampling, seed, stream)
        try:
            return asked.collect(progress, finished)
        finally:
            asked.cancel()

    def send(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        finished: Finished = ignore_rollout,
    ) -> UnderWay:
        """See `Engine.send`: `finished` is called from the thread of the HTTP client.

        Raises:
            EngineError: no server is left, or one serves other weights than this run's.
        """
        return self._ask(prompts, sampling, seed, stream).tell(finished)

    def _ask(self, prompts: Sequence[Prompt], sampling: Sampling, seed: int, stream: int | str) -> Requests:
        self._make_current()
        asked = [(prompt, sample) for prompt in prompts for sample in range(sampling.n)]
        answers = [
            self.servers.submit(
                self._body(prompt, sampling, derive_seed(seed, stream, prompt.id, sample)),
                len(prompt.ids) + sampling.max_tokens,
                self._read,
            )
            for prompt, sample in asked
        ]
        return Requests(asked, answers, sampling, self.version, self._check_versions)

    def _body(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": prompt.ids,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # What a request leaves out, a server may take from the model's generation config.
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "stop_token_ids": self.stop_ids,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        return body | self._limit_to_vocabulary()

    def _limit_to_vocabulary(self) -> dict[str, Any]:
        """Only ids below `vocabulary`. A padded vocabulary has few others, and naming these takes kilobytes a request
        where naming all allowed ones would take a megabyte; -100 nats is the strongest bias that servers take."""
        if self.vocabulary is None:
            return {}
        excluded = range(self.vocabulary, self.rows or 0)
        if not 0 < len(excluded) < self.vocabulary:
            return {"allowed_token_ids": list(range(self.vocabulary))}
        return {"logit_bias": {str(token): -100 for token in excluded}}

    def _read(self, choice: dict[str, Any]) -> Answer:
        answer = read_answer(choice)
        if self.vocabulary is not None and answer.ids.max() >= self.vocabulary:
            raise BadAnswer(f"token {answer.ids.max()}, which the teacher does not have")
        return answer

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """See `Engine.check_logprobs`. By default vLLM reports the model's own, whatever the sampling."""
        if sampling.plain:
            return
        # Of one token to choose from the log-prob is 0, unless it is the model's own.
        probe = Sampling(max_tokens=1, temperature=1.0, top_k=1)
        # One probe for each: they go to the server with the least to do.
        probes = [self.servers.submit(self._body(prompt, probe, 0), 1, read_answer) for _ in self.servers.alive]
        if any(answer.result().logprobs[0] < -1e-6 for answer in probes):
            raise ConfigError(
                f"rollout.temperature={sampling.temperature} top_p={sampling.top_p} top_k={sampling.top_k}: the "
                "servers report log-probs of the unchanged distribution, so the loss could not be corrected; start "
                "them with --logprobs-mode processed_logprobs, or sample with 1, 1 and 0"
            )

    def sync_weights(self, student: WeightSource, version: int) -> None:
        """Hand the student's weights to every server that is alive.

        Raises:
            EngineError: none took them.
        """
        self.version = version
        self._send = self.route.publish(student)
        self.servers.map_concurrent(self._hand_over, self.servers.alive)
        if not self.servers.alive:
            raise EngineError(f"{self.servers.key}: no server took the weights of step {version}; start them again")

    def load_weights(self, folder: str) -> None:
        """Have every server load the weights of a model folder that it can read, unless they all serve that model.

        A server that serves it needs no VLLM_SERVER_DEV_MODE.

        Raises:
            EngineError: one serves another model, and cannot load this one.
        """
        strangers = [server for server in self.servers.alive if not self._serves(server, folder)]
        if not strangers:
            return
        for server in self.servers.alive:
            if not self.servers.can_change_weights(server):
                raise EngineError(
                    f"{self.servers.key}={strangers[0].url}: serves {strangers[0].root or strangers[0].model}, not "
                    f"{folder}; start it with that model, or all of them with VLLM_SERVER_DEV_MODE=1, so that they can "
                    "load it"
                )
        self._send = lambda server: self.servers.post(
            server, "collective_rpc", {"method": "take_weights_from", "args": [str(Path(folder).resolve())]}
        )
        self.servers.map_concurrent(self._hand_over, self.servers.alive)

    def _serves(self, server: Server, folder: str) -> bool:
        """True where its weights are that model's, as they were loaded."""
        changeable = self.servers.can_change_weights(server)
        return server.serves(folder) and (not changeable or self._served(server) in (None, "default"))

    def _hand_over(self, server: Server) -> None:
        if self._send is None:
            return
        try:
            self._send(server)
            self.servers.post(server, "reset_prefix_cache")
            self.servers.post(server, "update_weight_version", {"new_version": self._stamp})
        except EngineError:
            if server.alive:  # it answers, and says no
                raise

    def _make_current(self) -> None:
        """Servers that came back, or were started anew, get the weights before they are asked for anything."""
        self.servers.revive()
        for server in self.servers.alive:
            if self._send is not None and self._served(server) != self._stamp and server.alive:
                log.warning("%s=%s: serves other weights; handing over step %d", *self._where(server), self.version)
                self._hand_over(server)
        self._check_versions()

    def _check_versions(self) -> None:
        for server in self.servers.alive if self._send is not None else []:
            served = self._served(server)
            if server.alive and served != self._stamp:
                raise EngineError(
                    f"{self.servers.key}={server.url}: serves weights {served!r} instead of {self._stamp!r}; "
                    "another run may be using it, or it was started anew: give each run servers of its own"
                )

    def _served(self, server: Server) -> str | None:
        try:
            return self.servers.get(server, "weight_info").get("weight_version")
        except EngineError:
            if server.alive:
                raise
            return None

    @property
    def _stamp(self) -> str:
        return f"{self._name}-{self.version}"

    def _where(self, server: Server) -> tuple[str, str]:
        return self.servers.key, server.url

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`."""
        for server in self.servers.alive:
            self.servers.post(server, "reset_prefix_cache")

    def close(self) -> None:
        """Drop what is under way; the servers keep running."""
        self.servers.close()
        self.route.close()


def read_answer(choice: dict[str, Any]) -> Answer:
    """An answer's token ids and their log-probs.

    Raises:
        BadAnswer: they do not count the same, or it was cut off by the server.
    """
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        raise BadAnswer("an answer without token ids or log-probs; vLLM 0.32 or newer gives both")
    if len(ids) != len(logprobs) or not ids or None in logprobs:
        raise BadAnswer(f"{len(logprobs)} log-probs for {len(ids)} tokens")
    if choice.get("finish_reason") not in ("stop", "length"):
        raise BadAnswer(f"an answer that ended with {choice.get('finish_reason')!r}")
    return Answer(as_ids(ids), as_logprobs(logprobs), choice["finish_reason"])
