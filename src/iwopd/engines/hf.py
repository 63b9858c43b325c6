"""Sampling with transformers in the training process: batched, with a KV cache, the same text at any batch size."""

import logging
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from iwopd.engines.base import Engine, Finished, Progress, Sampling, silent, unheard
from iwopd.engines.tally import Tally
from iwopd.errors import EngineError, NonFiniteError
from iwopd.language_model import LanguageModel
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout

log = logging.getLogger(__name__)

CACHE_GAP = 0.5  # nats; rounding in bfloat16 stays well below


def sampling_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """[batch, vocabulary] log-probs of the distribution that is sampled from: temperature, then top-k, then top-p.

    At temperature 0, log 1 at the most likely token and log 0 elsewhere.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        highest = logits.gather(-1, best)
        # log 1, and still NaN where the logits are: a diverged model must show under greedy decoding too.
        return torch.full_like(logits, -torch.inf).scatter(-1, best, highest - highest)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while those before it have not reached top_p, so the one that crosses it stays too.
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """[batch] token ids by inverse transform: the first whose cumulative probability exceeds `uniform` [batch].

    One uniform number per token, made outside, is all the randomness there is.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    threshold = uniform.to(cumulative) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


class HfEngine(Engine):
    """Samples from the very model that is trained, so syncing weights is a matter of the version alone.

    Args:
        model: the student.
        stop_ids: end-of-sequence token ids.
        batch_size: sequences sampled at one time; halved when memory runs out.
        vocabulary: ids at or above it are never sampled; None for all the model has.
    """

    def __init__(
        self, model: LanguageModel, stop_ids: Sequence[int], batch_size: int = 64, vocabulary: int | None = None
    ):
        self.model = model
        self.stop_ids = sorted(stop_ids)
        self.batch_size = batch_size
        self.vocabulary = vocabulary
        self.version = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = silent,
        finished: Finished = unheard,
    ) -> list[Rollout]:
        """See `Engine.generate`.

        Raises:
            NonFiniteError: the model's log-probs are NaN or infinite.
        """
        requests = [(prompt, sample) for prompt in prompts for sample in range(sampling.n)]
        # Prompts of like length share a batch: less padding. Results go back to their own places.
        order = sorted(range(len(requests)), key=lambda index: (len(requests[index][0].ids), index))
        rollouts: dict[int, Rollout] = {}
        tally = Tally(len(requests), sampling.max_tokens, progress)
        self.model.model.eval()
        while len(rollouts) < len(order):
            chosen, made = order[len(rollouts) : len(rollouts) + self.batch_size], None
            try:
                with self.model.autocast():  # around the whole batch: its cast weights are kept from token to token
                    made = self._generate_batch([requests[index] for index in chosen], sampling, seed, stream, tally)
            except torch.OutOfMemoryError:
                if len(chosen) == 1:
                    raise
            if made is None:  # the failed batch is freed only behind its except block
                self.batch_size = len(chosen) // 2
                log.warning("out of GPU memory while sampling: going on with rollout.batch_size=%d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            rollouts.update(zip(chosen, made, strict=True))
            for rollout in made:
                finished(rollout)
            tally.keep(len(made), sum(len(rollout.response_ids) for rollout in made))
        return [rollouts[index] for index in range(len(order))]

    @torch.inference_mode()
    def _generate_batch(
        self, requests: list[tuple[Prompt, int]], sampling: Sampling, seed: int, stream: int | str, tally: Tally
    ) -> list[Rollout]:
        device, size = self.model.device, len(requests)
        uniforms = torch.stack(
            [_uniforms(derive_seed(seed, stream, prompt.id, sample), sampling) for prompt, sample in requests]
        ).to(device)
        stop_ids = torch.tensor(self.stop_ids, device=device)
        tokens = torch.zeros(size, sampling.max_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(size, sampling.max_tokens, device=device)
        lengths = torch.full((size,), sampling.max_tokens, device=device)
        stopped = torch.zeros(size, dtype=torch.bool, device=device)
        written = ended_tokens = 0
        writing = size  # rows that are not at their end

        decoding = _Decoding(self.model, [prompt.ids for prompt, _ in requests])
        alive = torch.arange(size, device=device)  # rows of the batch still in the decoder's cache
        logits = decoding.first_logits()
        for time in range(sampling.max_tokens):
            choices = sampling_logprobs(logits[:, : self.vocabulary], sampling)
            chosen = draw(choices, uniforms[alive, time])
            tokens[alive, time] = chosen
            logprobs[alive, time] = choices.gather(-1, chosen[:, None]).squeeze(-1)
            ends = torch.isin(chosen, stop_ids) & ~stopped[alive]
            lengths[alive[ends]] = time + 1
            stopped[alive[ends]] = True
            running = (~stopped[alive]).nonzero().squeeze(-1)
            written += writing
            ended_tokens += (writing - len(running)) * (time + 1)
            writing = len(running)
            tally.under_way(written, size - writing, ended_tokens)
            if len(running) == 0 or time + 1 == sampling.max_tokens:
                break
            if 2 * len(running) <= len(alive):  # dropping finished rows costs a copy of the cache: not at every token
                decoding.keep(running)
                alive, chosen = alive[running], chosen[running]
            logits = decoding.next_logits(chosen)
        return self._records(requests, tokens.tolist(), logprobs, lengths.tolist(), stopped.tolist())

    def _records(
        self, requests: list[tuple[Prompt, int]], tokens: Any, logprobs: Tensor, lengths: Any, stopped: Any
    ) -> list[Rollout]:
        made = [
            Rollout(
                prompt_id=prompt.id,
                prompt_ids=prompt.ids,
                response_ids=tokens[row][: lengths[row]],
                sampler_logprobs=logprobs[row, : lengths[row]].tolist(),
                finish_reason="stop" if stopped[row] else "length",
                sample=sample,
                policy_version=self.version,
            )
            for row, (prompt, sample) in enumerate(requests)
        ]
        for row, rollout in enumerate(made):
            if not logprobs[row, : lengths[row]].isfinite().all():
                raise NonFiniteError(
                    f"the {self.model.name}'s log-probs are NaN or infinite while it answers {rollout.name}, "
                    f"after {self.version} steps; its weights have diverged or are damaged: lower optim.lr, "
                    "or go back to an earlier checkpoint"
                )
        return made

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """See `Engine.check_logprobs`: token by token with the cache must give what one pass over all tokens gives.

        Raises:
            EngineError: it does not, so the architecture does not use the cache as others do.
        """
        (rollout,) = self.generate([prompt], Sampling(max_tokens=4), seed=0, stream="check")
        *ids, last = rollout.prompt_ids + rollout.response_ids
        with torch.inference_mode(), self.model.autocast():
            logits = _Decoding(self.model, [ids]).first_logits()
            whole = sampling_logprobs(logits[:, : self.vocabulary], Sampling())[0, last].item()
        gap = abs(whole - rollout.sampler_logprobs[-1])
        if gap > CACHE_GAP:
            raise EngineError(
                f"rollout=hf: {type(self.model.model).__name__} answers otherwise with a cache than without one "
                f"({gap:.2g} nats), so its samples would be wrong; use rollout=vllm"
            )

    def sync_weights(self, student: Any, version: int) -> None:
        """Nothing to copy: the engine samples from the student's own weights."""
        self.version = version


class _Decoding:
    """Left-padded prompts and the KV cache that grows behind them."""

    def __init__(self, model: LanguageModel, prompts: list[list[int]]):
        self.model = model
        width = max(map(len, prompts))
        self.ids = torch.zeros(len(prompts), width, dtype=torch.long)
        self.mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            self.ids[row, width - len(prompt) :] = torch.tensor(prompt)
            self.mask[row, width - len(prompt) :] = 1
        self.padded = bool((self.mask == 0).any())
        self.ids, self.mask = self.ids.to(model.device), self.mask.to(model.device)
        self.positions = self.mask.cumsum(-1).clamp(min=1) - 1
        self.cache = DynamicCache(config=model.model.config)
        # State-space models name it so; their state holds no padding, so behind the prompts they want no mask.
        self.recurrent = "cache_params" in signature(model.model.base_model.forward).parameters
        self.past: dict[str, Any] = {"cache_params" if self.recurrent else "past_key_values": self.cache}

    def first_logits(self) -> Tensor:
        logits = self._forward(self.ids)
        self.padded = self.padded and not self.recurrent
        self.positions = self.positions[:, -1:]
        return logits

    def next_logits(self, chosen: Tensor) -> Tensor:
        self.positions = self.positions + 1
        if self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=-1)
        return self._forward(chosen[:, None])

    def keep(self, rows: Tensor) -> None:
        chosen: Any = rows
        self.cache.reorder_cache(chosen)  # unlike batch_select_indices, recurrent layers have it too
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        output = self.model.model.base_model(
            input_ids=ids,
            attention_mask=self.mask if self.padded else None,  # without padding, attention needs no mask
            position_ids=self.positions,
            use_cache=True,
            **self.past,
        )
        return self.model.head(output.last_hidden_state[:, -1])


def _uniforms(seed: int, sampling: Sampling) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)
