"""Chunked log-probs and KL: the same numbers as with all logits at once, and never more logits than a chunk."""

import weakref
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.profiler import profile
from torch.testing import assert_close

from iwopd.numerics import chunked_divergence, chunked_token_logprobs, linear_token_logprobs

TOKENS, WIDTH, VOCABULARY = 10, 6, 17
on_chunks = pytest.mark.parametrize("chunk", [1, 3, TOKENS, 1000])


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class CountingHead:
    """A linear head that remembers how many rows each call had, and how many rows of logits were alive at most."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.calls: list[int] = []
        self.most_alive = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __call__(self, states: Tensor) -> Tensor:
        logits = states @ self.weight.T
        self.calls.append(len(states))
        self._made.append(weakref.ref(logits))
        alive = [made() for made in self._made]
        self.most_alive = max(self.most_alive, sum(len(tensor) for tensor in alive if tensor is not None))
        return logits


@pytest.fixture
def case():
    """Hidden states, head weight, and targets of the student; the same of a wider teacher with a smaller vocabulary."""

    return SimpleNamespace(
        hidden=rand(TOKENS, WIDTH, seed=0).requires_grad_(),
        weight=rand(VOCABULARY, WIDTH, seed=1).requires_grad_(),
        teacher_hidden=rand(TOKENS, WIDTH + 2, seed=2),
        teacher_weight=rand(VOCABULARY - 4, WIDTH + 2, seed=3),
        targets=torch.arange(TOKENS) % (VOCABULARY - 4),
        factors=rand(TOKENS, seed=4),
    )


def gradients(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


# ---------------------------------------------------------------------------------------------- of the sampled tokens


def direct_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return log_softmax(hidden.double() @ weight.double().T, dim=-1).gather(-1, targets[:, None]).squeeze(-1)


def by_checkpoint(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    return chunked_token_logprobs(hidden, targets, lambda states: states @ weight.T, chunk)


by_both_ways = pytest.mark.parametrize("way", [by_checkpoint, linear_token_logprobs])


@on_chunks
@by_both_ways
def test_logprobs_and_gradients_equal_a_full_log_softmax(way, chunk, case):
    found = way(case.hidden, case.weight, case.targets, chunk)
    expected = direct_logprobs(case.hidden, case.weight, case.targets)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    backward = [
        gradients(loss @ factors, case.hidden, case.weight)
        for loss, factors in ((found, case.factors), (expected, case.factors.double()))
    ]
    for ours, theirs in zip(*backward, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@on_chunks
@by_both_ways
def test_bfloat16_heads_give_float32_logprobs(way, chunk, case):
    hidden, weight = case.hidden.detach().bfloat16().requires_grad_(), case.weight.detach().bfloat16().requires_grad_()
    found = way(hidden, weight, case.targets, chunk)
    expected = direct_logprobs(hidden, weight, case.targets)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=0.02, atol=0.05)
    for ours, theirs in zip(
        gradients(found @ case.factors, hidden, weight),
        gradients(expected @ case.factors.double(), hidden, weight),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=0.1, atol=0.1)


def test_nothing_is_lost_to_bfloat16_after_the_logits(case):
    logits = (rand(TOKENS, VOCABULARY, seed=5) * 8).bfloat16()
    found = chunked_token_logprobs(logits, case.targets, lambda states: states, 4)
    assert_close(found, log_softmax(logits.float(), dim=-1)[torch.arange(TOKENS), case.targets], rtol=1e-6, atol=1e-6)


@on_chunks
def test_float32_weights_in_bfloat16_products_have_float32_gradients(chunk, case):
    """As under autocast: the products are rounded, what is summed from chunk to chunk is not."""
    found = linear_token_logprobs(case.hidden, case.weight, case.targets, chunk, torch.bfloat16)
    expected = direct_logprobs(case.hidden, case.weight, case.targets)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=0.02, atol=0.05)
    ours = gradients(found @ case.factors, case.hidden, case.weight)
    theirs = gradients(expected @ case.factors.double(), case.hidden, case.weight)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, rtol=0.05, atol=0.05)


def test_the_gradient_of_a_bfloat16_product_is_not_copied_whole():
    """A CPU adds bfloat16 to float32 by way of a float32 copy, which only the allocator sees."""
    hidden, targets = rand(8, 64, seed=1), torch.arange(8)
    weight = rand(40_000, 64, seed=2).requires_grad_()

    def peak() -> int:
        with profile(profile_memory=True) as profiler:
            linear_token_logprobs(hidden, weight, targets, 8, torch.bfloat16).sum().backward()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))

    gradient_and_16_bit_weight, logits = weight.nbytes * 3 // 2, 3 * 8 * 40_000 * 4
    assert peak() < gradient_and_16_bit_weight + logits + 6 * 2**20


def test_a_frozen_linear_head_gets_no_gradient(case):
    weight = case.weight.detach()
    found = linear_token_logprobs(case.hidden, weight, case.targets, 3)
    (ours,) = gradients(found.sum(), case.hidden)
    (theirs,) = gradients(direct_logprobs(case.hidden, weight, case.targets).sum(), case.hidden)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@by_both_ways
def test_gradient_of_logprobs_by_finite_differences(way):
    hidden, weight = rand(4, 3, seed=0, dtype=torch.float64), rand(5, 3, seed=1, dtype=torch.float64)
    targets = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(
        lambda hidden, weight: way(hidden, weight, targets, 3),
        (hidden.requires_grad_(), weight.requires_grad_()),
    )


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    found = [chunked_token_logprobs(logits, torch.tensor([token]), lambda states: states, 1) for token in range(3)]
    assert torch.cat(found).tolist() == [0.0, -1e4, -2e4]


# ---------------------------------------------------------------------------------------------- of the whole vocabulary


def direct_kl(case) -> tuple[Tensor, Tensor, Tensor]:
    """KL(student ‖ teacher) and both log-probs in float64 by torch's own functions, over the shared vocabulary."""
    shared = min(len(case.weight), len(case.teacher_weight))
    student = log_softmax((case.hidden.double() @ case.weight.double().T)[:, :shared], dim=-1)
    teacher = log_softmax((case.teacher_hidden.double() @ case.teacher_weight.double().T)[:, :shared], dim=-1)
    kl = kl_div(teacher, student, log_target=True, reduction="none").sum(-1)
    return kl, *(logprobs.gather(-1, case.targets[:, None]).squeeze(-1) for logprobs in (student, teacher))


def chunked_kl(case, chunk: int, head=None, teacher_head=None):
    return chunked_divergence(
        case.hidden,
        case.teacher_hidden,
        case.targets,
        head or (lambda states: states @ case.weight.T),
        teacher_head or (lambda states: states @ case.teacher_weight.T),
        chunk,
    )


@on_chunks
@pytest.mark.parametrize("teacher_vocabulary", [VOCABULARY - 4, VOCABULARY, VOCABULARY + 3])
def test_reverse_kl_and_its_gradient_equal_torchs(chunk, teacher_vocabulary, case):
    case.teacher_weight = rand(teacher_vocabulary, WIDTH + 2, seed=3)
    found = chunked_kl(case, chunk)
    kl, student, teacher = direct_kl(case)
    assert_close(found.divergence.double(), kl, rtol=1e-5, atol=1e-5)
    assert_close(found.logprobs.double(), student.detach(), rtol=1e-5, atol=1e-6)
    assert_close(found.teacher_logprobs.double(), teacher, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        gradients(found.divergence @ case.factors, case.hidden, case.weight),
        gradients(kl @ case.factors.double(), case.hidden, case.weight),
        strict=True,
    ):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_reverse_kl_of_bfloat16_heads_is_near(case):
    kl, *_ = direct_kl(case)
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        setattr(case, name, getattr(case, name).detach().bfloat16())
    found = chunked_kl(case, 3).divergence
    assert found.dtype == torch.float32
    assert_close(found.double(), kl, rtol=0.1, atol=0.1)


def test_reverse_kl_of_a_model_with_itself_is_zero(case):
    case.teacher_hidden, case.teacher_weight = case.hidden, case.weight
    found = chunked_kl(case, 4).divergence
    assert_close(found, torch.zeros(TOKENS), rtol=0, atol=1e-6)
    assert_close(gradients(found.sum(), case.hidden)[0], torch.zeros(TOKENS, WIDTH), rtol=0, atol=1e-6)


def test_reverse_kl_sends_no_gradient_to_the_teacher(case):
    case.teacher_hidden.requires_grad_()
    case.teacher_weight.requires_grad_()
    found = chunked_kl(case, 4)
    found.divergence.sum().backward()
    assert case.hidden.grad.any()
    assert case.teacher_hidden.grad is case.teacher_weight.grad is None
    assert not found.logprobs.requires_grad
    assert not found.teacher_logprobs.requires_grad


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("chunk", [1, 3])
def test_no_more_than_a_chunk_of_logits_exists_in_forward_or_backward(chunk, case):
    head = CountingHead(case.weight)
    logprobs = chunked_token_logprobs(case.hidden, case.targets, head, chunk)
    forward = len(head.calls)
    logprobs.sum().backward()
    assert sum(head.calls) == 2 * TOKENS
    assert len(head.calls) == 2 * forward
    assert head.most_alive == max(head.calls) == chunk


@pytest.mark.parametrize("chunk", [1, 3])
def test_no_more_than_a_chunk_of_either_models_logits_exists_for_the_kl(chunk, case):
    heads = CountingHead(case.weight), CountingHead(case.teacher_weight)
    chunked_kl(case, chunk, *heads).divergence.sum().backward()
    for head in heads:
        assert sum(head.calls) == 2 * TOKENS
        assert head.most_alive == max(head.calls) == chunk


def test_without_gradients_every_token_passes_the_head_once(case):
    head = CountingHead(case.weight)
    with torch.no_grad():
        chunked_token_logprobs(case.hidden, case.targets, head, 3)
    assert head.calls == [3, 3, 3, 1]
    assert head.most_alive == 3
