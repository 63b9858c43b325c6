"""Student and teacher compared over the whole vocabulary, a chunk of tokens at a time."""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from dataclasses import dataclass

import torch
from torch import Tensor

from iwopd.numerics._shapes import Float, Int
from iwopd.numerics.logprobs import Head


@dataclass(frozen=True)
class Comparison:
    """Per token, float32 at least, detached.

    Attributes:
        logprobs, teacher_logprobs: of the token itself, nats.
        reverse_kl: KL(π_θ ‖ π_T), nats.
        entropy, teacher_entropy: of the next token's distribution, nats.
        overlap: share of the student's k most likely tokens that are among the teacher's k most likely ones.
    """

    logprobs: Tensor
    teacher_logprobs: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    teacher_entropy: Tensor
    overlap: Tensor


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
        k: size of the sets of most likely tokens (top-k overlap, as in arXiv 2605.07804).
    """
    parts: list[Tensor] = []
    for states, teacher_states, ids in zip(
        hidden.split(chunk), teacher_hidden.split(chunk), targets.split(chunk), strict=True
    ):
        logits, teacher_logits = head(states), teacher_head(teacher_states)
        shared = min(logits.shape[-1], teacher_logits.shape[-1])  # padded vocabularies may differ in size
        student, teacher = (_log_softmax(given[:, :shared]) for given in (logits, teacher_logits))
        best, teacher_best = (given.topk(min(k, shared), dim=-1).indices for given in (student, teacher))
        common = (best[:, :, None] == teacher_best[:, None, :]).any(-1)
        probabilities = student.exp()
        parts.append(
            torch.stack(
                [
                    student.gather(-1, ids[:, None])[:, 0],
                    teacher.gather(-1, ids[:, None])[:, 0],
                    (probabilities * (student - teacher)).sum(-1),
                    -(probabilities * student).sum(-1),
                    -(teacher.exp() * teacher).sum(-1),
                    common.to(student.dtype).mean(-1),
                ]
            )
        )
    return Comparison(*torch.cat(parts, dim=-1))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
