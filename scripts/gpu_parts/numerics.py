"""Does the device compute what the CPU computes?"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpu_parts.common import NEVER, TINY_SHAPE, WEIGHTING, make_model, make_prompts, make_rollout
from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.numerics import linear_token_logprobs
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update

TOLERANCES = {  # float32 itself is off by about 2e-6; TF32 would be by 1e-3
    "logprobs_max_abs": 1e-4,  # nats
    "gradients_max_rel": 1e-4,  # of the parameter's largest element
    "loss_rel": 1e-5,
    "sampled_differently": 0.05,  # share of tokens; in a sequence, one that differs makes those after it differ too
    "head_float32_rel": 1e-5,  # log-probs and gradients of the head alone against float64
    "head_bfloat16_rel": 2e-2,
}


def numerics(device: torch.device) -> dict[str, Any]:
    """Score, update and sample on both devices with the same weights."""
    student, teacher = (make_model(TINY_SHAPE, seed, initializer_range=0.1) for seed in (0, 1))
    here, there = (Traced(student, teacher, torch.device(place)) for place in ("cpu", device))
    gradients = [
        (here.student.gradients[name] - gradient).abs().max() / here.student.gradients[name].abs().max()
        for name, gradient in there.student.gradients.items()
    ]
    found = {
        "logprobs_max_abs": (here.logprobs - there.logprobs).abs().max().item(),
        "gradients_max_rel": torch.stack(gradients).max().item(),
        "loss_rel": abs(here.loss - there.loss) / abs(here.loss),
        "sampled_differently": (here.sampled != there.sampled).double().mean().item(),
        "head_float32_rel": head(device, torch.float32),
        "head_bfloat16_rel": head(device, torch.bfloat16),
    }
    ok = all(found[name] <= tolerance for name, tolerance in TOLERANCES.items())
    return {"ok": ok, **found, "tolerances": TOLERANCES}


def head(device: torch.device, dtype: torch.dtype) -> float:
    """Log-probs and gradients of the chunked head, whose kernels a device chooses, against all logits in float64."""
    generator = torch.Generator().manual_seed(0)
    states, matrix = (torch.randn(size, 64, generator=generator) for size in (300, 1024))
    targets, factors = torch.arange(300), torch.randn(300, generator=generator)

    def made(place: str | torch.device, wide: torch.dtype, ways: Any) -> list[Tensor]:
        hidden, weight = (each.clone().to(place, wide).requires_grad_() for each in (states, matrix))
        logprobs = ways(hidden, weight, targets.to(place))
        (logprobs @ factors.to(place, logprobs.dtype)).backward()
        return [each.double().cpu() for each in (logprobs.detach(), hidden.grad, weight.grad)]

    def exact(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        return torch.log_softmax(hidden @ weight.T, -1).gather(-1, ids[:, None]).squeeze(-1)

    ours = made(device, torch.float32, lambda *given: linear_token_logprobs(*given, 128, dtype))
    expected = made("cpu", torch.float64, exact)
    return max(float((one - other).norm() / other.norm()) for one, other in zip(ours, expected, strict=True))


class Recorder(Student):
    """Keeps the gradients that an update frees."""

    gradients: dict[str, Tensor]

    def apply_gradients(self, denominator: float) -> float:
        named = self.model.named_parameters()
        self.gradients = {
            name: parameter.grad.double().cpu() / denominator for name, parameter in named if parameter.grad is not None
        }
        return super().apply_gradients(denominator)


class Traced:
    """What one device makes of copies of the models: samples, log-probs, loss and gradients."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, device: torch.device):
        self.student = Recorder(place(student, device), OptimConfig(lr=1e-4), micro_batch_tokens=256)
        engine = HfEngine(self.student.lm, [NEVER], batch_size=16)
        sampled = engine.generate(make_prompts(32, 16), Sampling(max_tokens=64), seed=0, stream=0)
        self.sampled = torch.tensor([rollout.response_ids.tolist() for rollout in sampled])

        vocabulary = TINY_SHAPE["vocab_size"]
        rollouts = [make_rollout(i, prompt=3 + i, response=20 + 7 * i, vocabulary=vocabulary) for i in range(8)]
        scorer = HfTeacher(place(teacher, device), device, batch_tokens=256)
        scored = score(scorer, rollouts, WEIGHTING.window(0.0), student=self.student)
        self.loss = update(self.student, scored, Objective(WEIGHTING), seeds=range(8))["train/loss"]
        records = [values for record in scored for values in (record.teacher_logprobs, record.trainer_logprobs)]
        self.logprobs = torch.cat([torch.tensor(values) for values in records])


def place(model: PreTrainedModel, device: torch.device) -> LanguageModel:
    """A copy on `device`."""
    module: Any = copy.deepcopy(model)
    return LanguageModel(module.to(device))
