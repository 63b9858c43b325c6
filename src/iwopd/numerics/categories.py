"""What a teacher says of a token's distribution, as log-probs of both models over the same categories.

With `full_signal` a category is a token; with `top_k_signal` it is one of the teacher's k likeliest tokens, or the
tail: all that is left. What is made of categories (divergences, entropies) is the same pure function for both.
`chunked_measures` makes it without whole logits, a chunk of tokens at a time.
"""

# torch's own annotations are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from iwopd.numerics._shapes import Float, Int
from iwopd.numerics.logprobs import Head, run_chunk
from iwopd.numerics.precision import widened

Tail = Literal["bucket", "renormalize"]
ABSENT = -1e4  # log-prob, in both models, of a category that is not there: adds exactly 0 to every sum, and no gradient
# In units of the log-probs' rounding: added to both models' tails, for the teacher's is a difference to 1 and so
# rounded. The same in both, it adds nothing to a divergence, which by the log-sum inequality stays below the whole.
TAIL_ROUNDING = 8


class Categories(NamedTuple):
    """Log-probs of a chunk of tokens, nats.

    Attributes:
        student, teacher: [tokens, categories], of the same categories.
        tokens: [tokens, vocabulary], the student's, of all tokens that both models have.
        ids: [tokens, k], which token each of the first k categories is; None where category v is token v.
        targets: [tokens], ids of the sampled tokens.
        teacher_logprobs: [tokens], the teacher's, of the sampled tokens.
    """

    student: Tensor
    teacher: Tensor
    tokens: Tensor
    ids: Tensor | None
    targets: Tensor
    teacher_logprobs: Tensor

    def detached(self) -> "Categories":
        """The same numbers, to which no gradients flow."""
        return self._replace(student=self.student.detach(), tokens=self.tokens.detach())

    def of_tokens(self) -> tuple[Tensor, Tensor]:
        """Student's and teacher's log-probs of the categories that are tokens: without the tail."""
        count = self.student.shape[-1] if self.ids is None else self.ids.shape[-1]
        return self.student[:, :count], self.teacher[:, :count]


# From a chunk's categories to [tokens].
Measure = Callable[[Categories], Tensor]


@dataclass(frozen=True)
class TokenSignal:
    """What a teacher said of some tokens.

    Attributes:
        tensors: [tokens, …] each.
        categories: from a chunk's logits, targets and share of the tensors.
        places: [tokens], their indices among all tokens; None for all of them, in order.
    """

    tensors: tuple[Tensor, ...]
    categories: Callable[..., Categories]
    places: Tensor | None = None


def full_signal(
    states: Float[Tensor, "tokens teacher_width"], head: Head, places: Int[Tensor, " tokens"] | None = None
) -> TokenSignal:
    """Whole distributions, over the tokens both models have, from the teacher's hidden states and its head."""

    def categories(logits: Tensor, targets: Tensor, teacher_states: Tensor) -> Categories:
        teacher_logits = head(teacher_states).detach()
        shared = min(logits.shape[-1], teacher_logits.shape[-1])  # padded vocabularies may differ in size
        wide = torch.promote_types(logits.dtype, torch.float32)
        student = torch.log_softmax(logits[:, :shared].to(wide), dim=-1)
        teacher = torch.log_softmax(teacher_logits[:, :shared].to(wide), dim=-1)
        return Categories(student, teacher, student, None, targets, _at(teacher, targets))

    return TokenSignal((states,), categories, places)


def top_k_signal(
    ids: Int[Tensor, "tokens k"],
    logprobs: Float[Tensor, "tokens k"],
    teacher_logprobs: Float[Tensor, " tokens"],
    tail: Tail = "bucket",
    vocabulary: int | None = None,
) -> TokenSignal:
    """The teacher's k likeliest tokens. See `top_k_categories`.

    Args:
        teacher_logprobs: nats, of the sampled tokens.
    """

    def categories(logits: Tensor, targets: Tensor, ids: Tensor, logprobs: Tensor, own: Tensor) -> Categories:
        return top_k_categories(logits, targets, ids, logprobs, own, tail, vocabulary)

    return TokenSignal((ids, logprobs, teacher_logprobs), categories)


def top_k_categories(
    logits: Float[Tensor, "tokens student_vocabulary"],
    targets: Int[Tensor, " tokens"],
    ids: Int[Tensor, "tokens k"],
    logprobs: Float[Tensor, "tokens k"],
    teacher_logprobs: Float[Tensor, " tokens"],
    tail: Tail = "bucket",
    vocabulary: int | None = None,
) -> Categories:
    """The teacher's k likeliest tokens and, with `tail` "bucket", one category for all others; with "renormalize" both
    models' distributions over these tokens alone, which biases what is made of them.

    With the bucket it is a coarsening of the whole distributions: a divergence of it is never above the whole one,
    grows with k, and is the whole one where k is the vocabulary.

    Args:
        logits: the student's.
        ids: the teacher's likeliest tokens, likeliest first; int32 or int64.
        logprobs: the teacher's, nats; −inf for a place where it gave none.
        teacher_logprobs: the teacher's, nats, of the sampled tokens.
        vocabulary: tokens that both models have are those with ids below it; None for all of the student's. What the
            teacher gives to others is taken out of its distribution, as far as they are among its k likeliest.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    tokens = torch.log_softmax(logits[:, :vocabulary].to(wide), dim=-1)
    places, count = ids.long(), tokens.shape[-1]
    given = logprobs.isfinite()
    known = given & (places < count)
    foreign = torch.where(given & ~known, widened(logprobs).exp(), 0.0).sum(-1)
    taken_out = torch.log1p(-foreign.clamp(max=1 - 1e-6)).to(wide)
    places = torch.where(known, places, 0)
    teacher = torch.where(known, logprobs.to(wide) - taken_out[:, None], ABSENT)
    student = torch.where(known, tokens.gather(-1, places), ABSENT)
    if tail == "renormalize":
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    elif places.shape[-1] < count:
        covered = tokens.new_zeros(len(tokens), count + 1, dtype=torch.bool)
        covered = covered.scatter_(-1, torch.where(known, places, count), True)[:, :count]
        rest = tokens.masked_fill(covered, -torch.inf).logsumexp(-1, keepdim=True)
        teacher_rest = (1 - widened(teacher).exp().sum(-1, keepdim=True)).clamp(min=0)
        small = TAIL_ROUNDING * torch.finfo(logprobs.dtype).eps
        rest = torch.logaddexp(rest, torch.full_like(rest, math.log(small)))
        student, teacher = (
            torch.cat([student, rest], -1),
            torch.cat([teacher, (teacher_rest + small).log().to(wide)], -1),
        )
    return Categories(student, teacher, tokens, ids, targets, teacher_logprobs.to(wide) - taken_out)


def chunked_measures(
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    chunk: int,
    signal: TokenSignal,
    trained: Mapping[str, Measure],
    known: Mapping[str, Measure],
) -> dict[str, Float[Tensor, " tokens"]]:
    """Every measure of every token, by its name.

    Args:
        hidden: the student's states that predict the targets; those of the signal's places alone.
        head: the student's.
        chunk: tokens whose logits exist at one time, in forward and in backward.
        trained: gradients flow to them, and through them to the student.
        known: these are detached.
    """

    def rows(states: Tensor, ids: Tensor, *tensors: Tensor) -> Tensor:
        categories = signal.categories(head(states), ids, *tensors)
        made = {measure: measure(categories) for measure in trained.values()}
        fixed = categories.detached()
        return torch.stack([*made.values(), *(made[each] if each in made else each(fixed) for each in known.values())])

    pieces = zip(
        hidden.split(chunk), targets.split(chunk), *(each.split(chunk) for each in signal.tensors), strict=True
    )
    parts = zip(*(run_chunk(rows, *piece) for piece in pieces), strict=True)
    named = zip([*trained, *known], (torch.cat(part) for part in parts), strict=True)  # no views: they may get hooks
    return {name: row if name in trained else row.detach() for name, row in named}


def chunked_top_k(
    hidden: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"], head: Head, chunk: int, k: int
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
    """What a teacher says as `top_k` signal: log-probs (nats) of the targets, ids of the k likeliest tokens, likeliest
    first, and their log-probs (nats, float32 at least).

    Args:
        chunk: tokens whose logits exist at one time.

    Raises:
        ValueError: k above the vocabulary.
    """
    parts = [
        _top_k(head(states), ids, k) for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, ids, likeliest = (torch.cat(part) for part in zip(*parts, strict=True))
    return logprobs, ids, likeliest


def _top_k(logits: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    if k > logits.shape[-1]:
        raise ValueError(f"k={k}: the vocabulary has {logits.shape[-1]} tokens")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = logits.logsumexp(-1, keepdim=True)
    best = logits.topk(k, dim=-1)
    return _at(logits, targets) - total[:, 0], best.indices, best.values - total


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(-1, places[:, None]).squeeze(-1)


def token_logprobs(given: Categories) -> Tensor:
    """The student's log-probs of the sampled tokens, nats."""
    return _at(given.tokens, given.targets)


def measures_of_parts(parts: Sequence[tuple[TokenSignal, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Measures of several signals, each of its places, put together in the order of the tokens."""
    order = torch.cat([signal.places for signal, _ in parts if signal.places is not None]).argsort()
    return {name: torch.cat([found[name] for _, found in parts])[order] for name in parts[0][1]}
