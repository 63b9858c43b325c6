"""Sampling with transformers in the training process: batched, with a KV cache, the same text at any batch size."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from iwopd.errors import EngineError, IwopdError, NonFiniteError, first_line
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.numerics.precision import widened
from iwopd.rollout.base import Engine, Finished, Progress, Sampling, ignore_rollout, no_progress
from iwopd.rollout.caches import cache_argument
from iwopd.rollout.decoding import Decoding, decoding_context
from iwopd.rollout.tally import Tally
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout, as_ids, as_logprobs

log = logging.getLogger(__name__)

# Mean and largest gap, nats per token, between sampling with a cache and one pass over all tokens that rounding may
# make, beside NOISE times what it makes between passes without a cache. Measured: in float32 up to 2e-5 on average, in
# bfloat16 0.007 for tiny models and 0.06 for one of 135 M parameters; caches that lose something, 0.13 to 1.6.
CACHE_GAPS = {torch.float32: (0.01, 0.1), torch.bfloat16: (0.1, 1.0)}
NOISE = 4
CHECKED = 16  # tokens of each answer in that check


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
    cumulative = widened(logprobs).exp().cumsum(-1)
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
        progress: Progress = no_progress,
        finished: Finished = ignore_rollout,
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
                with decoding_context(self.model):  # around the whole batch, so that weights are cast once
                    made = self._generate_batch([requests[index] for index in chosen], sampling, seed, stream, tally)
            except torch.OutOfMemoryError:
                if len(chosen) == 1:
                    raise
            if made is None:  # the failed batch is freed only after its except block
                self.batch_size = len(chosen) // 2
                log.warning("out of GPU memory while sampling: continuing with rollout.batch_size=%d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            rollouts.update(zip(chosen, made, strict=True))
            for rollout in made:
                finished(rollout)
            tally.keep(len(made), sum(len(rollout.response_ids) for rollout in made))
        return [rollouts[index] for index in range(len(order))]

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

        decoding = Decoding(self.model, [prompt.ids for prompt, _ in requests])
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
        return self._records(requests, tokens.cpu(), logprobs.cpu(), lengths.tolist(), stopped.tolist())

    def _records(
        self,
        requests: list[tuple[Prompt, int]],
        tokens: Tensor,
        logprobs: Tensor,
        lengths: Sequence[int],
        stopped: Sequence[bool],
    ) -> list[Rollout]:
        made = [
            Rollout(
                prompt_id=prompt.id,
                prompt_ids=as_ids(prompt.ids),
                response_ids=as_ids(tokens[row, : lengths[row]].numpy()),
                sampler_logprobs=as_logprobs(logprobs[row, : lengths[row]].numpy()),
                finish_reason="stop" if stopped[row] else "length",
                sample=sample,
                policy_version=self.version,
                teacher_prompt_ids=None if prompt.teacher_ids is None else as_ids(prompt.teacher_ids),
            )
            for row, (prompt, sample) in enumerate(requests)
        ]
        _check_finite(made, self.model.name, self.version)
        return made

    def check_logprobs(self, sampling: Sampling, prompt: Prompt) -> None:
        """See `Engine.check_logprobs`: token by token with the cache must give what one pass over all tokens gives.

        Raises:
            EngineError: it does not, or the architecture takes no cache or uses it otherwise than others do.
        """
        said, model = f"rollout=hf: {type(self.model.model).__name__}", self.model
        if cache_argument(model) is None:
            raise EngineError(
                f"{said} takes no cache of the usual kind, so it cannot answer token by token; use rollout=vllm if "
                "vLLM has it, or name another model"
            )
        model.model.eval()
        try:
            gaps, noise = self._cache_gaps(prompt, min(CHECKED, sampling.max_tokens))
        except (IwopdError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever an architecture raises
            raise EngineError(
                f"{said} cannot be sampled from with a cache: {first_line(error)}; use rollout=vllm if vLLM has it, or "
                "name another model"
            ) from error
        computed = torch.bfloat16 if model.autocast_enabled else model.model.dtype
        if not cache_agrees(noise, torch.zeros(1), computed):
            raise EngineError(
                f"{said} gives a row other log-probs beside longer rows than alone ({noise.mean():.2g} nats per token "
                f"on average, {noise.max():.2g} at most): it looks at what comes after a token; name a causal model"
            )
        if not cache_agrees(gaps, noise, computed):
            raise EngineError(
                f"{said} answers otherwise with a cache than without one (in a batch of unlike prompts "
                f"{gaps.mean():.2g} nats per token on average, {gaps.max():.2g} at most), so its samples would be "
                "wrong; use rollout=vllm if vLLM has it, or name another model"
            )

    @torch.no_grad()
    def _cache_gaps(self, prompt: Prompt, tokens: int) -> tuple[Tensor, Tensor]:
        """|sampler's log-prob − trainer's| and |trainer's − trainer's of each row alone|, [tokens] each, nats.

        Of answers to the prompt and to two ends of it, in a padded batch of unlike rows, of which the middle one leaves
        half-way.
        """
        model, ids = self.model, prompt.ids * (1 + 3 // len(prompt.ids))
        prompts = [Prompt(prompt.id, ids[-size:], "") for size in (len(ids), 1 + len(ids) // 2, 1 + len(ids) // 5)]
        with decoding_context(model):
            rollouts = _answers(model, prompts, tokens)
        _check_finite(rollouts, model.name, self.version)
        windows = [(0, len(rollout.response_ids)) for rollout in rollouts]

        def trainers(chosen: slice) -> Tensor:
            return model.token_logprobs(collate_tokens(rollouts[chosen], windows[chosen], device=model.device)).cpu()

        together = trainers(slice(None))
        alone = torch.cat([trainers(slice(row, row + 1)) for row in range(len(rollouts))])
        sampled = torch.from_numpy(numpy.concatenate([rollout.sampler_logprobs for rollout in rollouts]))
        return (sampled - together).abs(), (together - alone).abs()

    def sync_weights(self, student: object, version: int) -> None:
        """Nothing to copy: the engine samples from the student's own weights."""
        self.version = version


def cache_agrees(gaps: Tensor, noise: Tensor, dtype: torch.dtype) -> bool:
    """Whether `gaps` [tokens] are no more than rounding in `dtype`, of which `noise` [tokens] is a sample; nats."""
    mean, largest = CACHE_GAPS.get(dtype, CACHE_GAPS[torch.bfloat16])
    return bool(gaps.mean() <= mean + NOISE * noise.mean() and gaps.max() <= largest + NOISE * noise.max())


def _answers(model: LanguageModel, prompts: Sequence[Prompt], tokens: int) -> list[Rollout]:
    """One answer of `tokens` tokens to each of three prompts; the one in the middle has half of them."""
    given = Sampling(max_tokens=tokens)
    ids, logprobs = ([list[Any]() for _ in prompts] for _ in range(2))
    seeds = [derive_seed("check", prompt.id, row) for row, prompt in enumerate(prompts)]
    uniforms = torch.stack([_uniforms(seed, given) for seed in seeds]).to(model.device)
    alive = torch.arange(len(prompts), device=model.device)
    decoding = Decoding(model, [prompt.ids for prompt in prompts])
    logits = decoding.first_logits()
    for time in range(tokens):
        choices = sampling_logprobs(logits, given)
        chosen = draw(choices, uniforms[alive, time])
        drawn = choices.gather(-1, chosen[:, None]).squeeze(-1)
        for row, token, logprob in zip(alive.tolist(), chosen.tolist(), drawn.tolist(), strict=True):
            ids[row].append(token)
            logprobs[row].append(logprob)
        if time == tokens // 2:
            kept = torch.tensor([0, len(prompts) - 1], device=model.device)
            decoding.keep(kept)
            alive, chosen = alive[kept], chosen[kept]
        if time + 1 < tokens:
            logits = decoding.next_logits(chosen)
    return [
        Rollout(prompt.id, as_ids(prompt.ids), as_ids(ids[row]), as_logprobs(logprobs[row]), "length", row)
        for row, prompt in enumerate(prompts)
    ]


def _check_finite(rollouts: Sequence[Rollout], name: str, version: int) -> None:
    for rollout in rollouts:
        if not numpy.isfinite(rollout.sampler_logprobs).all():
            raise NonFiniteError(
                f"the {name}'s log-probs are NaN or infinite while it answers {rollout.name}, after {version} steps; "
                "its weights have diverged or are damaged: lower optim.lr, or go back to an earlier checkpoint"
            )


def _uniforms(seed: int, sampling: Sampling) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)
