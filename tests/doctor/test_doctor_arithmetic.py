"""The doctor's arithmetic by hand: parameters, bytes, FLOPs, seconds, and what the layers of a model keep."""

import json

import pytest
import torch
from support.paths import DATA
from transformers import AutoConfig, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from iwopd.config.gpus import CARDS, card_of
from iwopd.doctor import cpu, memory
from iwopd.doctor.compute import Shape, decode_seconds, matmul_seconds
from iwopd.doctor.costs import step_seconds
from iwopd.doctor.fake_model import FakeModel, Work
from iwopd.doctor.live_bytes import LiveBytes
from iwopd.doctor.models import shape_of
from iwopd.rollout.base import Sampling
from iwopd.vllm.in_process import cache_room

MODELS = DATA / "models"


def shape(name: str, trained: int = 0) -> Shape:
    config = AutoConfig.from_pretrained(MODELS / name)
    return shape_of("student", FakeModel(config, dtype="bfloat16").model, config, 2, trained)


def test_rollouts_one_step_ahead_cost_what_is_left_of_them() -> None:
    assert step_seconds([25, 17, 45], ahead=0) == 87
    assert step_seconds([25, 17, 45], ahead=1) == 62
    assert step_seconds([90, 17, 45], ahead=1) == 90


# ---------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen3-0.6B", 596_049_920), ("Qwen3-1.7B", 1_720_574_976), ("Qwen3-4B", 4_022_468_096)],
)
def test_parameters_are_those_of_the_published_models(name: str, parameters: int) -> None:
    found = shape(name)
    assert found.parameters == found.active == parameters
    assert found.tied
    assert found.body == parameters - found.head


def test_a_token_meets_eight_of_128_experts() -> None:
    found = shape("Qwen3-30B-A3B-Instruct-2507")
    assert found.parameters == 30_532_122_624
    each = 3 * 2048 * 768  # gate, up and down of one expert
    assert found.experts == 48 * 128 * each
    assert found.active == 30_532_122_624 - 48 * 120 * each
    # The embedding's rows are looked up; the head is counted where log-probs are made.
    assert found.body == found.active - 2 * 151_936 * 2048


def test_every_planned_model_has_its_published_size() -> None:
    given = json.loads((MODELS / "Qwen3-235B-A22B-Instruct-2507" / "config.json").read_text())
    # Embeddings, head; per layer attention with its norms, router, experts; the last norm.
    attention = 4096 * 128 * (64 + 64 + 2 * 4) + 2 * 128
    layer = attention + 2 * 4096 + 128 * 4096 + 128 * 3 * 4096 * given["moe_intermediate_size"]
    assert 2 * 151_936 * 4096 + 94 * layer + 4096 == 235_093_634_560


# ---------------------------------------------------------------------------------------------- bytes


def test_terms_are_counts_times_bytes() -> None:
    count = 4_022_468_096
    assert memory.weights(count, 4).bytes == 16_089_872_384
    assert memory.gradients(count, 4).bytes == 16_089_872_384
    assert memory.adam(count, 4).bytes == 32_179_744_768
    assert memory.adam(count, 4).how == "2 × 4.02 B × 4 bytes"
    assert memory.size(16_089_872_384) == "15.0 GiB"
    assert memory.checkpoint_bytes(count, 4, count, 4) == 12 * count
    assert memory.checkpoint_bytes(count, 2, 1000, 4) == 12_000  # adapters alone
    assert memory.prompt_logprobs(8192, 151_936).bytes == 8192 * 151_936 * 10


def test_keys_and_values_of_a_token() -> None:
    assert memory.cache_per_token(36, 8, 128, 2) == 147_456
    assert memory.kv_cache(256, 18_432, 147_456).bytes == 256 * 18_432 * 147_456
    assert shape("Qwen3-4B").cache == 147_456


def test_room_for_keys_and_values_of_a_cpu_engine() -> None:
    # 100 tokens are one block of 128; three sequences of it fit in 1 GiB, and two always must.
    assert cache_room(1000, 100, 3) == 3 * 128_000
    assert cache_room(2**25, 100, 3) == 2 * 128 * 2**25


# ---------------------------------------------------------------------------------------------- FLOPs and seconds


def test_flops_of_a_forward_pass() -> None:
    found = shape("Qwen3-4B")
    attention = 4 * 36 * 32 * 128 * 1000 * 500  # each of 1000 tokens attends to 500 on average
    assert found.forward(1000, 600, 1000) == 2 * found.body * 1000 + 2 * 151_936 * 2560 * 600 + attention


def test_seconds_of_products_and_of_decoding() -> None:
    card = CARDS["h100"]
    assert matmul_seconds(989e12, card, 0.5) == pytest.approx(2.0)
    assert matmul_seconds(989e12, card, 0.5, gpus=4) == pytest.approx(0.5)
    assert matmul_seconds(1.0, None, 0.5) is None
    # 512 sequences, 256 at once, 100 tokens each: 200 passes, each reading 8 GB and 256 caches of 50 + 50 tokens.
    seconds = decode_seconds(512, 256, 100, 50, 8e9, 1e5, card, 0.6)
    assert seconds == pytest.approx(200 * (8e9 + 256 * 1e5 * 100) / (0.6 * 3350e9))


def test_a_card_is_known_by_its_cuda_name() -> None:
    assert card_of("NVIDIA A100-SXM4-40GB", 39.4) is CARDS["a100-40"]
    assert card_of("NVIDIA A100-SXM4-80GB", 79.2) is CARDS["a100-80"]
    assert card_of("NVIDIA L4", 22.0) is CARDS["l4"]
    assert card_of("NVIDIA L40S", 44.0) is CARDS["l40s"]
    assert card_of("NVIDIA GeForce RTX 4090", 23.6) is CARDS["rtx4090"]
    assert card_of("Tesla K80", 11.0) is None


# ---------------------------------------------------------------------------------------------- what passes keep

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
}


def kept(layers: int, **options: bool) -> int:
    fake = FakeModel(Qwen3Config(num_hidden_layers=layers, **SHAPE), dtype="float32", **options)
    return fake.update(Work(2, 16, 0, 113), first=False).kept


def test_a_layer_keeps_what_its_operators_need_for_backward() -> None:
    """Per token: gate, up, silu(gate) and their product; queries and keys before the norm, normed, scaled and turned,
    values, attention's output; two norms' inputs and outputs, two sums; of each norm and of attention a scalar."""
    width, mlp, query, key, heads, kv_heads = 128, 320, 128, 64, 4, 2
    numbers = 4 * mlp + 4 * query + 4 * key + 6 * width
    scalars = 2 + (heads + kv_heads) + heads
    tokens = 2 * 128
    assert kept(3) - kept(2) == pytest.approx(4 * tokens * (numbers + scalars), rel=0.01)


def test_a_checkpointed_layer_keeps_its_input_only() -> None:
    assert kept(3, checkpointing=True) - kept(2, checkpointing=True) == pytest.approx(4 * 2 * 128 * 128, rel=0.01)


def test_the_cache_of_a_rollout() -> None:
    config = LlamaConfig(num_hidden_layers=3, **SHAPE)
    found = FakeModel(config, dtype="float32").rollout(5, 20, 11, Sampling(max_tokens=11))
    assert found.kept == 5 * 30 * memory.cache_per_token(3, 2, 32, 4)
    assert found.peak > found.kept


def test_experts_in_float32_are_traced_too() -> None:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hidden_layers": 2}
    found = FakeModel(Qwen3MoeConfig(**SHAPE, **more), dtype="float32").update(Work(2, 16, 0, 113), first=True)
    assert found.peak > found.kept > 0


def test_live_bytes_counts_a_storage_once_and_until_it_is_freed() -> None:
    there = torch.zeros(1000)
    with LiveBytes([there]) as live:
        made = there + 1
        view = made.view(10, 100)[2:]
        assert live.now == live.peak == 4000
        del made
        assert live.now == 4000  # the view holds the storage
        del view
        assert live.now == 0
        there.add_(1)
    assert (live.now, live.peak) == (0, 4000)


def test_a_cpu_is_measured_in_what_a_model_computes_in() -> None:
    card = cpu.measured()
    assert card.float32 is not None
    assert 1e-3 < card.float32 < 1e3, "10¹² per second"
    assert 1e-3 < card.tflops < 1e3
    assert 0.1 < card.bandwidth < 1e4
    assert matmul_seconds(1e12, card, 1.0, each=4) == pytest.approx(1 / card.float32)
    assert matmul_seconds(1e12, card, 1.0, each=2) == pytest.approx(1 / card.tflops)
