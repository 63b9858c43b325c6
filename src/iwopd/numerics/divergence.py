"""Divergences of two models' next-token distributions, and what else is measured of them per token."""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from iwopd.numerics._shapes import Float, Int
from iwopd.numerics.categories import Categories, Measure, TokenSignal, chunked_measures, full_signal, token_logprobs
from iwopd.numerics.logprobs import Head

# From log-probs [tokens, categories] of student and teacher to [tokens], nats.
Divergence = Callable[[Tensor, Tensor], Tensor]


class ChunkedScores(NamedTuple):
    """Per token, float32 at least, nats; a tuple of tensors, which a model's forward may return.

    Attributes:
        divergence: what was asked for; alone it carries gradients, to the student.
        reverse_kl: KL(π_θ ‖ π_T) over the categories.
        logprobs, teacher_logprobs: of the token itself.
    """

    divergence: Tensor
    reverse_kl: Tensor
    logprobs: Tensor
    teacher_logprobs: Tensor


# ---------------------------------------------------------------------------------------------- divergences


def reverse_kl(
    student: Float[Tensor, "tokens categories"], teacher: Float[Tensor, "tokens categories"]
) -> Float[Tensor, " tokens"]:
    """KL(π_θ ‖ π_T) = Σ_v π_θ(v) (log π_θ(v) − log π_T(v)), of log-probs."""
    return (student.exp() * (student - teacher)).sum(-1)


def forward_kl(
    student: Float[Tensor, "tokens categories"], teacher: Float[Tensor, "tokens categories"]
) -> Float[Tensor, " tokens"]:
    """KL(π_T ‖ π_θ) = Σ_v π_T(v) (log π_T(v) − log π_θ(v)), of log-probs."""
    return reverse_kl(teacher, student)


def skew_reverse_kl(
    student: Float[Tensor, "tokens categories"], teacher: Float[Tensor, "tokens categories"], skew: float
) -> Float[Tensor, " tokens"]:
    """KL(π_θ ‖ α π_θ + (1 − α) π_T), α = `skew`, of log-probs: bounded by −log α (DistiLLM, arXiv 2402.03898). α = 0 is
    `reverse_kl`."""
    return reverse_kl(student, _mixture(teacher, student, skew)) if skew else reverse_kl(student, teacher)


def skew_forward_kl(
    student: Float[Tensor, "tokens categories"], teacher: Float[Tensor, "tokens categories"], skew: float
) -> Float[Tensor, " tokens"]:
    """KL(π_T ‖ α π_T + (1 − α) π_θ), α = `skew`, of log-probs: bounded by −log α (DistiLLM, arXiv 2402.03898). α = 0 is
    `forward_kl`."""
    return skew_reverse_kl(teacher, student, skew)


def jsd(
    student: Float[Tensor, "tokens categories"], teacher: Float[Tensor, "tokens categories"], beta: float
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
    mixture = _mixture(student, teacher, beta)
    return beta * reverse_kl(teacher, mixture) + (1 - beta) * reverse_kl(student, mixture)


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Log of (1 − share) · exp(one) + share · exp(other)."""
    return torch.logaddexp(other + math.log(share), one + math.log1p(-share))


# ---------------------------------------------------------------------------------------------- measures of categories


def reverse_kl_of(categories: Categories) -> Float[Tensor, " tokens"]:
    """`reverse_kl` of the categories."""
    return reverse_kl(categories.student, categories.teacher)


def measure_of(divergence: Divergence) -> Measure:
    """A divergence as a measure; of `reverse_kl` the very one that is a metric, so that it is made once."""

    def measure(categories: Categories) -> Tensor:
        return divergence(categories.student, categories.teacher)

    return reverse_kl_of if divergence is reverse_kl else measure


def entropy(categories: Categories) -> Float[Tensor, " tokens"]:
    """The student's, nats, over all tokens."""
    return -(categories.tokens.exp() * categories.tokens).sum(-1)


def teacher_entropy(categories: Categories) -> Float[Tensor, " tokens"]:
    """The teacher's, nats, over the categories: with a tail never above the whole one."""
    return -(categories.teacher.exp() * categories.teacher).sum(-1)


def teacher_rank(categories: Categories) -> Float[Tensor, " tokens"]:
    """Of the student's likeliest token: how many tokens are likelier to the teacher. Of one that is not among the
    teacher's k likeliest, k."""
    best = categories.tokens.argmax(-1, keepdim=True)
    student, teacher = categories.of_tokens()
    own = teacher.gather(-1, best) if categories.ids is None else _where_is(best, categories.ids, teacher)
    return (teacher > own).sum(-1).to(student.dtype)


def _where_is(best: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
    return torch.where(ids == best, teacher, -torch.inf).amax(-1, keepdim=True)


def overlap(categories: Categories, k: int) -> Float[Tensor, " tokens"]:
    """Share of the student's k likeliest tokens that are among the teacher's k likeliest (arXiv 2605.07804)."""
    _, teacher = categories.of_tokens()
    size = min(k, teacher.shape[-1])
    best, theirs = (each.topk(size, dim=-1).indices for each in (categories.tokens, teacher))
    if categories.ids is not None:
        theirs = categories.ids.gather(-1, theirs)
    return (best[:, :, None] == theirs[:, None, :]).any(-1).to(teacher.dtype).mean(-1)


def gated_forward_kl(categories: Categories, threshold: float, k: int) -> Float[Tensor, " tokens"]:
    """EOPD's addition (arXiv 2603.07079): where the teacher's entropy is above `threshold` (nats; 0.8 there), the
    forward KL over the teacher's k likeliest tokens (16 there), both models renormalised to them; 0 elsewhere."""
    student, teacher = categories.of_tokens()
    chosen = teacher.topk(min(k, teacher.shape[-1]), dim=-1).indices
    found = forward_kl(student.gather(-1, chosen).log_softmax(-1), teacher.gather(-1, chosen).log_softmax(-1))
    return torch.where(teacher_entropy(categories) > threshold, found, torch.zeros_like(found))


def advantage_baseline(categories: Categories, shape: Callable[[Tensor], Tensor]) -> Float[Tensor, " tokens"]:
    """−E[shape(A)] over the student's next token, A = log π_T − log π_θ: what centres the shaped advantage. Without a
    shape it is KL(π_θ ‖ π_T) (vOPD, arXiv 2605.07865). It does not depend on the token that was sampled, so adding it
    leaves the gradient's mean as it is."""
    return -(categories.student.exp() * shape(categories.teacher - categories.student)).sum(-1)


def _own_teacher_logprobs(categories: Categories) -> Tensor:
    return categories.teacher_logprobs


# What can be measured of both models' distributions, by name; a weighting scheme may ask for any of it.
MEASURES: Mapping[str, Measure] = {
    "logprobs": token_logprobs,
    "teacher_logprobs": _own_teacher_logprobs,
    "reverse_kl": reverse_kl_of,
    "entropy": entropy,
    "teacher_entropy": teacher_entropy,
    "teacher_rank": teacher_rank,
}


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
    return chunked_scores(hidden, targets, head, chunk, full_signal(teacher_hidden, teacher_head), divergence)


def chunked_scores(
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    chunk: int,
    signal: TokenSignal,
    divergence: Divergence = reverse_kl,
) -> ChunkedScores:
    """`chunked_divergence` over the categories of any signal."""
    trained = {"divergence": measure_of(divergence)}
    known = {name: MEASURES[name] for name in ("reverse_kl", "logprobs", "teacher_logprobs")}
    return ChunkedScores(**chunked_measures(hidden, targets, head, chunk, signal, trained, known))
