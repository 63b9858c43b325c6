"""Divergences of two models' next-token distributions, and how they are made without whole logits.

`chunked_divergence` goes through both heads a chunk of tokens at a time, as `chunked_token_logprobs` does through one.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from iwopd.numerics._shapes import Float, Int
from iwopd.numerics.logprobs import Head, run_chunk

# From log-probs [tokens, vocabulary] of student and teacher to [tokens], nats.
Divergence = Callable[[Tensor, Tensor], Tensor]


class ChunkedScores(NamedTuple):
    """Per token, float32 at least, nats; a tuple of tensors, which a model's forward may return.

    Attributes:
        divergence: what was asked for; alone it carries gradients, to the student.
        reverse_kl: KL(π_θ ‖ π_T) over the vocabulary.
        logprobs, teacher_logprobs: of the token itself.
    """

    divergence: Tensor
    reverse_kl: Tensor
    logprobs: Tensor
    teacher_logprobs: Tensor


def reverse_kl(
    student: Float[Tensor, "tokens vocabulary"], teacher: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, " tokens"]:
    """KL(π_θ ‖ π_T) = Σ_v π_θ(v) (log π_θ(v) − log π_T(v)), of log-probs."""
    return (student.exp() * (student - teacher)).sum(-1)


def forward_kl(
    student: Float[Tensor, "tokens vocabulary"], teacher: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, " tokens"]:
    """KL(π_T ‖ π_θ) = Σ_v π_T(v) (log π_T(v) − log π_θ(v)), of log-probs."""
    return reverse_kl(teacher, student)


def jsd(
    student: Float[Tensor, "tokens vocabulary"], teacher: Float[Tensor, "tokens vocabulary"], beta: float
) -> Float[Tensor, " tokens"]:
    """The generalised Jensen-Shannon divergence β KL(π_T ‖ M) + (1 − β) KL(π_θ ‖ M), M = β π_T + (1 − β) π_θ, of
    log-probs (GKD, arXiv 2306.13649).

    It vanishes as β goes to 0 or 1. As TRL does, β = 0 is the forward KL and β = 1 the reverse KL, which are the limits
    of JSD_β / β and JSD_β / (1 − β).

    Raises:
        ValueError: beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta}: must be from 0 to 1")
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * reverse_kl(teacher, mixture) + (1 - beta) * reverse_kl(student, mixture)


def chunked_divergence(
    hidden: Float[Tensor, "tokens width"],
    teacher_hidden: Float[Tensor, "tokens teacher_width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    teacher_head: Head,
    chunk: int,
    divergence: Divergence = reverse_kl,
) -> ChunkedScores:
    """A divergence per token, over the vocabulary both models have.

    The log-probs of the sampled tokens come with it, so a full-vocabulary loss needs no further pass.

    Args:
        chunk: tokens whose logits exist at one time, in forward and in backward.
    """

    def scored(states: Tensor, teacher_states: Tensor, ids: Tensor) -> Tensor:
        logits, teacher_logits = head(states), teacher_head(teacher_states).detach()
        shared = min(logits.shape[-1], teacher_logits.shape[-1])  # padded vocabularies may differ in size
        wide = torch.promote_types(logits.dtype, torch.float32)
        student = torch.log_softmax(logits[:, :shared].to(wide), dim=-1)
        teacher = torch.log_softmax(teacher_logits[:, :shared].to(wide), dim=-1)
        rows = [divergence(student, teacher)[None]]
        if divergence is not reverse_kl:
            rows.append(reverse_kl(student.detach(), teacher)[None])
        at_token = torch.stack([student, teacher]).detach().gather(-1, ids.expand(2, -1)[..., None]).squeeze(-1)
        return torch.cat([*rows, at_token])

    pieces = zip(hidden.split(chunk), teacher_hidden.split(chunk), targets.split(chunk), strict=True)
    parts = zip(*(run_chunk(scored, *piece) for piece in pieces), strict=True)
    found, *known = (torch.cat(part) for part in parts)  # no views: what a module returns may get hooks
    *kl, logprobs, teacher_logprobs = (row.detach() for row in known)
    return ChunkedScores(found, kl[0] if kl else found.detach(), logprobs, teacher_logprobs)
