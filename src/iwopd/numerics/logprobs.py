"""Log-probs of tokens without a [tokens × vocabulary] tensor for the whole micro-batch.

Hidden states go through the LM head a chunk of tokens at a time, and again in backward, so neither pass holds more than
one chunk of logits. A plain linear head has its own backward with one buffer for all chunks (`linear_token_logprobs`);
any other callable, soft-capped or LoRA-adapted, is recomputed by `torch.utils.checkpoint`. Why not PyTorch's own
`linear_cross_entropy`, scripts/bench_memory.py measures.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from iwopd.numerics._shapes import Float, Int

Head = Callable[[Tensor], Tensor]
# Numbers that are added at one time to ones of another dtype: a CPU copies them first; a GPU needs large products.
COPIED = {"cpu": 2**20, "cuda": 2**25}


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    # log_softmax at one place, without a second [chunk × vocabulary] tensor.
    return logits.gather(-1, targets[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def run_chunk(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of the tensors, run again in backward, so that nothing of a chunk is kept until then."""
    if torch.is_grad_enabled():
        # Nothing random happens inside, so the RNG state need not be kept.
        return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
    return function(*tensors)


def chunked_token_logprobs(
    hidden: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"], head: Head, chunk: int
) -> Float[Tensor, " tokens"]:
    """log p(targets[i]) in nats, float32 at least, where ``head(hidden[i])`` are the logits that predict it.

    Args:
        chunk: tokens whose logits exist at one time, in forward and in backward.
    """

    def scored(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)
        return _gather(logits.to(torch.promote_types(logits.dtype, torch.float32)), ids)

    parts = [
        run_chunk(scored, states, ids) for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def linear_token_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    chunk: int,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, " tokens"]:
    """`chunked_token_logprobs` for the head ``hidden @ weight.T``: the same numbers, less memory and time.

    Args:
        dtype: of the matrix products, as under autocast; None for that of `weight`.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, chunk, dtype or weight.dtype)  # pyright: ignore


class _LinearLogprobs(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) − softmax(logits), made chunk by chunk in one buffer."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  ctx is passed by place
        ctx: Any,  # noqa: ANN401  holds what forward keeps, under names of ours
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        states, matrix = hidden.to(dtype), weight.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        logprobs, normalizers = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(2))
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=wide)
        for part in _parts(len(hidden), chunk):
            logprobs[part], normalizers[part] = _normalize(states[part], matrix, targets[part, None], buffer)
        # The cast matrix is kept: backward comes next, so it is needed no longer than if it were made again.
        ctx.save_for_backward(hidden, weight, matrix, targets, normalizers)
        ctx.chunk, ctx.dtype = chunk, dtype
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  likewise
        ctx: Any,  # noqa: ANN401  as above
        *gradients: Tensor,
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, matrix, targets, normalizers = ctx.saved_tensors
        states = hidden.to(ctx.dtype)
        hidden_gradient = torch.empty_like(hidden)
        # Sums of many chunks: in bfloat16 their rounding would be a hundredth of the gradient.
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight_gradient = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        buffer = normalizers.new_empty(min(ctx.chunk, len(hidden)), len(weight))
        for part in _parts(len(hidden), ctx.chunk):
            scale = gradient[part, None]
            probabilities = _softmax(states[part], matrix, normalizers[part, None], buffer)
            slope = probabilities.mul_(-scale).scatter_add_(-1, targets[part, None], scale).to(ctx.dtype)
            hidden_gradient[part] = (slope @ matrix).to(hidden.dtype)
            if weight_gradient is not None and wide == ctx.dtype:
                weight_gradient.addmm_(slope.T, states[part])
            elif weight_gradient is not None:
                rows = max(1, COPIED.get(weight.device.type, COPIED["cuda"]) // weight.shape[1])
                for sums, slopes in zip(weight_gradient.split(rows), slope.T.split(rows), strict=True):
                    sums += slopes @ states[part]
        weight_gradient = None if weight_gradient is None else weight_gradient.to(weight.dtype)
        return hidden_gradient, weight_gradient, None, None, None


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


def _normalize(states: Tensor, matrix: Tensor, targets: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets [tokens, 1], and log Σ exp of the logits, [tokens] each.

    On a GPU every pass over a chunk's logits takes as long as their product, and log_softmax is one pass.
    """
    if states.is_cuda:
        logits = states @ matrix.T
        logprobs = torch.log_softmax(logits, -1, dtype=buffer.dtype, out=buffer[: len(states)]).gather(-1, targets)
        return logprobs.squeeze(-1), (logits.gather(-1, targets) - logprobs).squeeze(-1)
    logits = _logits(states, matrix, buffer)
    picked, highest = logits.gather(-1, targets).squeeze(-1), logits.amax(-1)
    normalizers = logits.sub_(highest[:, None]).exp_().sum(-1).log_() + highest
    return picked - normalizers, normalizers


def _softmax(states: Tensor, matrix: Tensor, normalizers: Tensor, buffer: Tensor) -> Tensor:
    """Probabilities [tokens, vocabulary], in the buffer."""
    if states.is_cuda:
        return torch.softmax(states @ matrix.T, -1, dtype=buffer.dtype, out=buffer[: len(states)])
    return _logits(states, matrix, buffer).sub_(normalizers).exp_()


def _logits(states: Tensor, matrix: Tensor, buffer: Tensor) -> Tensor:
    """states @ matrix.T in the buffer's dtype, in the buffer."""
    out = buffer[: len(states)]
    if matrix.dtype == buffer.dtype:
        return torch.mm(states, matrix.T, out=out)
    return out.copy_(states @ matrix.T)
