"""Estimated against measured memory: real models through rollout, scoring and update, by PyTorch's allocator."""

import sys

import pytest
from support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

from bench_estimate import EXPERTS, STAGES, Case, estimate, measure

pytestmark = pytest.mark.process

SMALL = {"width": 256, "mlp": 768, "layers": 4, "vocabulary": 16_000, "prompts": 3, "prompt": 160, "response": 12}
CASES = {
    "one micro-batch": Case(**SMALL, micro=10_000),
    "unequal micro-batches": Case(**SMALL, micro=500),
    "checkpointing": Case(**SMALL | {"layers": 8}, checkpointing=True),
    "a large vocabulary": Case(**SMALL | {"width": 128, "vocabulary": 100_000}),
    "autocast": Case(**SMALL | {"layers": 2, "vocabulary": 4_000}, autocast=True),
    "autocast, a large vocabulary": Case(**SMALL | {"layers": 2, "vocabulary": 50_000}, autocast=True),
    "Llama, untied": Case(**SMALL, kind="llama", tied=False),
    "Gemma": Case(**SMALL, kind="gemma2", more={"head_dim": 64}),
    "GPT-NeoX": Case(**SMALL | {"vocabulary": 8_000}, kind="gpt_neox", tied=False),
    "experts": Case(**SMALL | {"layers": 3}, kind="qwen3_moe", more=EXPERTS),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_estimates_are_within_15_percent_of_what_is_allocated(case: Case) -> None:
    guessed, found = estimate(case), measure(case, tensors=True)
    assert min(found.values()) > 40  # MiB; nothing here is a matter of rounding
    ratios = {stage: guessed[stage].tensors / found[stage] for stage in STAGES}
    limit = 0.1 if case.autocast else 0.15
    assert all(abs(ratio - 1) < limit for ratio in ratios.values()), (ratios, guessed, found)
