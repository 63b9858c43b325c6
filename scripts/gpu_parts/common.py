"""Models, rollouts and clocks of all parts."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iwopd.types import Prompt, Rollout, as_ids, as_logprobs
from iwopd.weighting.iw import Iw

# Dense bfloat16 FLOP/s of the SXM parts, by a piece of the device's name.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
NEVER = -1  # a stop id that is not sampled
WEIGHTING = Iw()

TINY_SHAPE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
QWEN3_06B_SHAPE = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Sequences of one update: how many, and tokens of each one's prompt and response."""

    sequences: int
    prompt: int
    response: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.response

    def __str__(self) -> str:
        return f"{self.sequences} x {self.response}"


def make_model(
    shape: dict[str, Any],
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    initializer_range: float = 0.02,
) -> PreTrainedModel:
    """A Qwen3, or what the shape says, with random weights, made where it is to stand."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            model_config(shape, initializer_range), dtype=dtype, attn_implementation=attention
        )


def model_config(shape: dict[str, Any], initializer_range: float = 0.02) -> PreTrainedConfig:
    return AutoConfig.for_model(
        **{"model_type": "qwen3", **shape},
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
    )


def make_prompts(count: int, length: int) -> list[Prompt]:
    """Random prompts of up to `length` tokens."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(1000, (count, length), generator=generator).tolist()
    return [Prompt(f"prompt-{i}", row[i % (length // 2) :], text="") for i, row in enumerate(ids)]


def make_rollouts(work: Work, vocabulary: int) -> list[Rollout]:
    return [make_rollout(i, work.prompt, work.response, vocabulary) for i in range(work.sequences)]


def make_rollout(index: int, prompt: int, response: int, vocabulary: int) -> Rollout:
    """Random tokens; the sampler's log-probs are a uniform distribution's, a little off."""
    generator = torch.Generator().manual_seed(index)
    ids = as_ids(torch.randint(vocabulary, (prompt + response,), generator=generator).numpy())
    noise = 0.1 * torch.randn(response, generator=generator)
    logprobs = as_logprobs((noise - torch.tensor(vocabulary).log()).numpy())
    return Rollout(f"rollout-{index}", ids[:prompt], ids[prompt:], logprobs, "length")


def timed(
    device: torch.device, run: Callable[[], Any], tokens: int, flops: float | None = None, times: int = 3
) -> dict[str, Any]:
    """One warm-up, then the median; memory as torch counts it, MiB."""
    run()
    before, seconds = allocated(device), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = peak_flops(device)
    return {
        "seconds": round(median(seconds), 4),
        "tokens_per_s": round(tokens / median(seconds)),
        "mfu": round(flops / median(seconds) / peak, 3) if flops and peak else None,
        "memory_before_mib": before,
        "memory_peak_mib": mib(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None,
    }


def forward_flops(model: PreTrainedModel, work: Work) -> float:
    """2 per weight and token, the head's only for response tokens; causal attention: 2 · layers · width · length²."""
    config: Any = model.config
    head = config.vocab_size * config.hidden_size  # tied to the embeddings, so it is among the parameters once
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    length = work.prompt + work.response - 1
    return 2.0 * work.sequences * (body * length + head * work.response + width * length**2)


def peak_flops(device: torch.device) -> float | None:
    return next((flops for piece, flops in PEAK_FLOPS.items() if piece in device_name(device)), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> float | None:
    return mib(torch.cuda.memory_allocated(device)) if device.type == "cuda" else None


def empty(device: torch.device) -> None:
    """Give back what the last case held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def mib(size: float) -> float:
    return round(size / 2**20, 1)
