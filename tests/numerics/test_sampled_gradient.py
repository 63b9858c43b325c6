"""What the importance correction makes good, and what not: exact gradients over a small vocabulary, nothing sampled."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from iwopd.numerics import policy_token_losses
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import sampling_logprobs

STATES, VOCABULARY = 16, 50


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1).mean()


def expected_loss(student: Tensor, teacher: Tensor, sampling: Sampling) -> Tensor:
    """The policy gradient's loss with importance correction, each token as often as the sampler draws it."""
    sampler = sampling_logprobs(student.detach(), sampling).double()
    drawn = sampler.isfinite()
    ours = student.log_softmax(-1)
    advantages = teacher.log_softmax(-1) - ours.detach()
    tokens = policy_token_losses(
        ours, ours.detach(), advantages, drawn, sampler_logprobs=torch.where(drawn, sampler, 0.0)
    )
    return (sampler.exp() * tokens.losses).sum(-1).mean()


def trained(sampling: Sampling, seed: int = 0) -> tuple[list[float], float]:
    """400 steps of gradient descent: cosines of the gradient to the true one of the reverse KL at steps 0, 100 and 400,
    and the reverse KL at the end, nats."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, STATES, VOCABULARY, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    cosines = []
    for step in range(401):
        (found,) = torch.autograd.grad(expected_loss(student, teacher, sampling), student)
        if step in (0, 100, 400):
            (true,) = torch.autograd.grad(reverse_kl(student, teacher), student)
            cosines.append(cosine_similarity(found.flatten(), true.flatten(), dim=0).item())
        with torch.no_grad():
            student -= 20 * found
    return cosines, reverse_kl(student, teacher).item()


@pytest.mark.parametrize("temperature", [1.0, 1.5, 0.7])
def test_a_temperature_is_made_good(temperature: float) -> None:
    cosines, left = trained(Sampling(temperature=temperature))
    assert min(cosines) > 0.995
    assert left < 0.01


@pytest.mark.parametrize(
    ("sampling", "most", "least_left"), [(Sampling(top_p=0.95), 0.9, 0.05), (Sampling(top_k=5), 0.4, 0.3)]
)
def test_what_is_cut_off_is_not(sampling: Sampling, most: float, least_left: float) -> None:
    """docs/losses.md says so, and a training warns."""
    cosines, left = trained(sampling)
    assert max(cosines[1:]) < most
    assert left > least_left
