"""Student and teacher compared over the whole vocabulary, a chunk of tokens at a time."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from iwopd.numerics._shapes import Float, Int
from iwopd.numerics.categories import Measure, chunked_measures, full_signal
from iwopd.numerics.divergence import MEASURES, overlap
from iwopd.numerics.logprobs import Head


@dataclass(frozen=True)
class Comparison:
    """Per token, float32 at least, detached.

    Attributes:
        logprobs, teacher_logprobs: of the token itself, nats.
        reverse_kl: KL(π_θ ‖ π_T), nats.
        entropy, teacher_entropy: of the next token's distribution, nats.
        teacher_rank: of the student's likeliest token, 0 where it is the teacher's too.
        overlap: share of the student's k most likely tokens that are among the teacher's k most likely ones.
    """

    logprobs: Tensor
    teacher_logprobs: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    teacher_entropy: Tensor
    teacher_rank: Tensor
    overlap: Tensor


def comparison_measures(k: int) -> dict[str, Measure]:
    """What a comparison consists of, by name.

    Args:
        k: size of the sets of most likely tokens (top-k overlap, as in arXiv 2605.07804).
    """
    return {**MEASURES, "overlap": partial(overlap, k=k)}


@torch.no_grad()
def chunked_comparison(
    hidden: Float[Tensor, "tokens width"],
    teacher_hidden: Float[Tensor, "tokens teacher_width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    teacher_head: Head,
    chunk: int,
    k: int,
) -> Comparison:
    """Compare two models' next-token distributions over the vocabulary both have.

    Args:
        chunk: tokens whose logits exist at one time.
        k: see `comparison_measures`.
    """
    signal = full_signal(teacher_hidden, teacher_head)
    return Comparison(**chunked_measures(hidden, targets, head, chunk, signal, {}, comparison_measures(k)))
