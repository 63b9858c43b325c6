"""A teacher's k likeliest tokens against whole distributions: float64 double loops, autograd on whole logits, and what
holds of any coarsening."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from iwopd.numerics import (
    Categories,
    Divergence,
    advantage_baseline,
    chunked_measures,
    chunked_top_k,
    forward_kl,
    full_signal,
    gated_forward_kl,
    jsd,
    measure_of,
    reverse_kl,
    shaped,
    skew_forward_kl,
    skew_reverse_kl,
    top_k_categories,
    top_k_signal,
)
from iwopd.numerics.divergence import MEASURES

TOKENS, VOCABULARY = 7, 11
DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jsd 0.5": partial(jsd, beta=0.5),
    "jsd 0.1": partial(jsd, beta=0.1),
    "skewed reverse": partial(skew_reverse_kl, skew=0.1),
    "skewed forward": partial(skew_forward_kl, skew=0.1),
}
on_divergences = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
on_tails = pytest.mark.parametrize("tail", ["bucket", "renormalize"])


def random_logits(seed: int, width: int = VOCABULARY, scale: float = 3) -> Tensor:
    return scale * torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(states: Tensor) -> Tensor:
    """A head that does nothing, so that hidden states are logits."""
    return states


def cut(logits: Tensor, teacher: Tensor, k: int, **options: object) -> Categories:
    """Categories of the teacher's k likeliest tokens."""
    own, ids, likeliest = chunked_top_k(teacher, torch.zeros(TOKENS).long(), nothing, 3, k)
    return top_k_categories(logits, torch.zeros(TOKENS).long(), ids, likeliest, own, **options)


def kl(left: list[float], right: list[float]) -> float:
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(left, right, strict=True))


def coarse(ours: list[float], theirs: list[float], k: int, tail: str) -> tuple[list[float], list[float]]:
    """Probabilities of the categories, by hand."""
    order = sorted(range(len(theirs)), key=lambda token: -theirs[token])[:k]
    left, right = ([each[token] for token in order] for each in (ours, theirs))
    if tail == "renormalize":
        return [p / sum(left) for p in left], [q / sum(right) for q in right]
    rest = [token for token in range(len(theirs)) if token not in order]
    if rest:
        left, right = [*left, sum(ours[t] for t in rest)], [*right, sum(theirs[t] for t in rest)]
    return left, right


@on_tails
@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_divergences_of_the_likeliest_tokens_equal_double_loops(k: int, tail: str) -> None:
    student, teacher = random_logits(0), random_logits(1)
    found = cut(student, teacher, k, tail=tail)
    for row, (ours, theirs) in enumerate(zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True)):
        left, right = coarse(ours, theirs, k, tail)
        mixed = [0.3 * q + 0.7 * p for p, q in zip(left, right, strict=True)]
        expected = {
            reverse_kl: kl(left, right),
            forward_kl: kl(right, left),
            partial(jsd, beta=0.3): 0.3 * kl(right, mixed) + 0.7 * kl(left, mixed),
            partial(skew_reverse_kl, skew=0.7): kl(left, mixed),
            partial(skew_forward_kl, skew=0.3): kl(right, mixed),
        }
        for divergence, value in expected.items():
            assert divergence(found.student, found.teacher)[row].item() == pytest.approx(value, rel=1e-7, abs=1e-12)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 2.0]))
@on_divergences
def test_with_a_bucket_a_divergence_grows_with_k_up_to_the_whole_one(
    divergence: Divergence, seed: int, scale: float
) -> None:
    student, teacher = random_logits(seed, scale=scale), random_logits(seed + 1, scale=scale)
    whole = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    below = torch.zeros(TOKENS, dtype=torch.float64)
    for k in range(1, VOCABULARY + 1):
        categories = cut(student, teacher, k)
        found = divergence(categories.student, categories.teacher)
        assert (found >= below - 1e-7).all()  # the rest is a difference to 1, which rounds
        assert (found <= whole + 1e-10).all()
        below = found
    assert_close(below, whole, rtol=1e-9, atol=1e-12)


def test_renormalised_a_divergence_may_be_above_the_whole_one_and_one_token_says_nothing() -> None:
    """Why the bucket is the default."""
    student, teacher = (
        torch.tensor([shares], dtype=torch.float64).log().expand(TOKENS, -1)
        for shares in ([0.45, 0.05, 0.5], [0.36, 0.34, 0.3])
    )
    whole = reverse_kl(student, teacher)
    one, two = (cut(student, teacher, k, tail="renormalize") for k in (1, 2))
    assert_close(reverse_kl(one.student, one.teacher), torch.zeros(TOKENS, dtype=torch.float64))
    assert (reverse_kl(two.student, two.teacher) > 1.3 * whole).all()


@on_tails
@on_divergences
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_give_the_values_and_gradients_of_whole_logits(divergence: Divergence, chunk: int, tail: str) -> None:
    """Teacher and student have padded vocabularies of other sizes; a token that only the teacher has is among its
    likeliest, and one place is empty."""
    logits, theirs = random_logits(0).requires_grad_(), random_logits(1, width=VOCABULARY + 2)
    targets, factors = torch.arange(TOKENS), torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    own, ids, likeliest = chunked_top_k(theirs, targets, nothing, 3, 5)
    assert (ids >= VOCABULARY).any()
    likeliest[2, 4] = -torch.inf
    expected = []
    for row in range(TOKENS):
        ours = logits[row].log_softmax(-1)
        foreign = sum(math.exp(p) for i, p in zip(ids[row], likeliest[row], strict=True) if i >= VOCABULARY)
        kept = [
            (i, p) for i, p in zip(ids[row].tolist(), likeliest[row], strict=True) if i < VOCABULARY and p.isfinite()
        ]
        left = ours[[i for i, _ in kept]]
        right = torch.stack([p for _, p in kept]) - math.log(1 - foreign)
        if tail == "renormalize":
            left, right = left.log_softmax(-1), right.log_softmax(-1)
        else:
            left = torch.cat([left, (1 - left.exp().sum()).log()[None]])
            right = torch.cat([right, (1 - right.exp().sum()).log()[None]])
        expected.append(divergence(left[None], right[None])[0])
    expected = torch.stack(expected)
    (gradient,) = torch.autograd.grad(factors @ expected, logits)
    signal = top_k_signal(ids.int(), likeliest, own, tail, VOCABULARY)
    trained = {"divergence": measure_of(divergence)}
    found = chunked_measures(logits, targets, nothing, chunk, signal, trained, {"reverse_kl": MEASURES["reverse_kl"]})
    assert_close(found["divergence"], expected)
    assert_close(torch.autograd.grad(factors @ found["divergence"], logits)[0], gradient)
    assert not found["reverse_kl"].requires_grad


@on_tails
@on_divergences
def test_teacher_and_student_alike_give_zero_and_no_gradient(divergence: Divergence, tail: str) -> None:
    """In float32, as in a training; with tails down to nothing."""
    for scale in (0.5, 3.0, 30.0):
        logits = random_logits(0, scale=scale).float().requires_grad_()
        categories = cut(logits, logits.detach(), 4, tail=tail)
        found = divergence(categories.student, categories.teacher)
        assert found.abs().max() < 2e-5
        assert torch.autograd.grad(found.sum(), logits)[0].abs().max() < 2e-5


def test_a_teacher_that_is_sure_is_finite_and_far_from_a_student_that_is_not() -> None:
    """The rest of its probability is below what float32 can tell from nothing."""
    teacher = torch.zeros(TOKENS, VOCABULARY)
    teacher[:, 3] = 200
    logits = torch.zeros(TOKENS, VOCABULARY, requires_grad=True)
    found = cut(logits, teacher, 2)
    for divergence in DIVERGENCES.values():
        value = divergence(found.student, found.teacher)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), logits, retain_graph=True)[0].isfinite().all()
    assert reverse_kl(found.student, found.teacher).min() > 5


def test_the_likeliest_tokens_are_those_of_whole_logits_and_no_more_than_there_are() -> None:
    logits, targets = random_logits(0).float(), torch.arange(TOKENS)
    expected = logits.log_softmax(-1)
    for chunk in (1, 3, 100):
        own, ids, likeliest = chunked_top_k(logits, targets, nothing, chunk, 4)
        assert_close(own, expected.diagonal())
        assert torch.equal(ids, expected.topk(4).indices)
        assert_close(likeliest, expected.topk(4).values)
    with pytest.raises(ValueError, match="the vocabulary has 11 tokens"):
        chunked_top_k(logits, targets, nothing, 3, 12)


# ---------------------------------------------------------------------------------------------- measures


def measures(signal: object, logits: Tensor, wanted: dict[str, Callable[[Categories], Tensor]]) -> dict[str, Tensor]:
    return chunked_measures(logits, torch.arange(TOKENS), nothing, 3, signal, {}, wanted)


def test_measures_of_the_likeliest_tokens_are_those_of_whole_distributions_where_k_is_the_vocabulary() -> None:
    student, teacher = random_logits(0), random_logits(1)
    own, ids, likeliest = chunked_top_k(teacher, torch.arange(TOKENS), nothing, 3, VOCABULARY)
    wanted = {
        **MEASURES,
        "gated": partial(gated_forward_kl, threshold=0.8, k=3),
        "baseline": partial(advantage_baseline, shape=partial(shaped, shape="soft_log")),
    }
    whole = measures(full_signal(teacher, nothing), student, wanted)
    found = measures(top_k_signal(ids, likeliest, own), student, wanted)
    assert set(found) == {*wanted}
    for name in wanted:
        assert_close(found[name], whole[name])


@pytest.mark.parametrize("k", [5, VOCABULARY])
def test_the_rank_of_the_students_likeliest_token(k: int) -> None:
    student, teacher = random_logits(4), random_logits(5)
    own, ids, likeliest = chunked_top_k(teacher, torch.arange(TOKENS), nothing, 3, k)
    wanted = {"teacher_rank": MEASURES["teacher_rank"]}
    expected = [
        min(k, sorted(row.tolist(), reverse=True).index(row[best]))
        for row, best in zip(teacher, student.argmax(-1).tolist(), strict=True)
    ]
    assert len(set(expected)) > 2
    assert measures(top_k_signal(ids, likeliest, own), student, wanted)["teacher_rank"].tolist() == expected


@pytest.mark.parametrize("k", [5, VOCABULARY])
def test_entropies(k: int) -> None:
    """The student's is exact whatever k is; the teacher's is that of its categories, never above the whole one."""
    student, teacher = random_logits(0), random_logits(1)
    own, ids, likeliest = chunked_top_k(teacher, torch.arange(TOKENS), nothing, 3, k)
    wanted = {name: MEASURES[name] for name in ("entropy", "teacher_entropy")}
    found = measures(top_k_signal(ids, likeliest, own), student, wanted)
    for row in range(TOKENS):
        ours, theirs = (logits[row].softmax(-1).tolist() for logits in (student, teacher))
        _, coarser = coarse(ours, theirs, k, "bucket")
        assert found["entropy"][row].item() == pytest.approx(-sum(p * math.log(p) for p in ours))
        assert found["teacher_entropy"][row].item() == pytest.approx(-sum(q * math.log(q) for q in coarser))


def test_eopds_gate_adds_the_forward_kl_where_the_teacher_is_not_sure() -> None:
    student, teacher = random_logits(0), random_logits(1, scale=1.5)
    found = measures(full_signal(teacher, nothing), student, {"gated": partial(gated_forward_kl, threshold=1.5, k=4)})[
        "gated"
    ]
    open_gates = 0
    for row in range(TOKENS):
        ours, theirs = (logits[row].softmax(-1).tolist() for logits in (student, teacher))
        sure = -sum(q * math.log(q) for q in theirs) <= 1.5
        left, right = coarse(ours, theirs, 4, "renormalize")
        assert found[row].item() == pytest.approx(0 if sure else kl(right, left))
        open_gates += not sure
    assert 0 < open_gates < TOKENS


@pytest.mark.parametrize("shape", ["none", "clip", "soft_log"])
def test_the_baseline_centres_the_advantage_and_leaves_the_gradients_mean(shape: str) -> None:
    """By the sum over all tokens that may be sampled; without a shape it is the reverse KL."""
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    apply = partial(shaped, shape=shape, bound=1.5)
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    advantages = apply((theirs - ours).detach())
    baseline = measures(full_signal(teacher, nothing), student, {"b": partial(advantage_baseline, shape=apply)})["b"]
    if shape == "none":
        assert_close(baseline, reverse_kl(ours, theirs).detach())
    probabilities = ours.exp().detach()
    assert_close((probabilities * (advantages + baseline[:, None])).sum(-1), torch.zeros(TOKENS, dtype=torch.float64))
    gradients = []
    for added in (torch.zeros(TOKENS, 1, dtype=torch.float64), baseline[:, None]):
        expected = (probabilities * (advantages + added) * ours).sum()
        gradients.append(torch.autograd.grad(expected, student, retain_graph=True)[0])
    assert_close(gradients[0], gradients[1])


def test_shapes_of_the_advantage() -> None:
    values = torch.tensor([-20.0, -1.0, 0.0, 0.5, 7.0])
    assert shaped(values, "none") is values
    assert shaped(values, "clip", 5.0).tolist() == [-5, -1, 0, 0.5, 5]
    expected = [-math.log(21), -math.log(2), 0, math.log(1.5), math.log(8)]
    assert shaped(values, "soft_log").tolist() == pytest.approx(expected)


def test_skewed_divergences_are_bounded_and_without_a_skew_the_plain_ones() -> None:
    student, teacher = random_logits(0, scale=30).log_softmax(-1), random_logits(1, scale=30).log_softmax(-1)
    for skewed, plain in ((skew_reverse_kl, reverse_kl), (skew_forward_kl, forward_kl)):
        assert torch.equal(skewed(student, teacher, 0.0), plain(student, teacher))
        assert skewed(student, teacher, 0.1).max() <= -math.log(0.1) + 1e-9 < plain(student, teacher).max()
