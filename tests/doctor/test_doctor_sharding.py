"""The plan for several GPUs: against arithmetic by hand, and what each process keeps of what is shared."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support.composing import composed
from support.paths import DATA
from transformers import AutoConfig, Qwen3Config

from iwopd.config import Config
from iwopd.doctor.lengths import lengths
from iwopd.doctor.machine import machine_for
from iwopd.doctor.memory import GIB, Place, Term
from iwopd.doctor.models import Model, student_model
from iwopd.doctor.plan import Plan
from iwopd.doctor.sharding import Parts, Sharding, sharding
from iwopd.weighting.uniform import Uniform

FOUR = AutoConfig.from_pretrained(DATA / "models" / "Qwen3-4B")
EIGHT = Qwen3Config(**{**FOUR.to_dict(), "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False})
SMALL = Qwen3Config(
    vocab_size=1000, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
)  # fmt: skip
MODELS = {"4B": FOUR, "8B": EIGHT, "small": SMALL}
SERVERS = ("scoring=vllm_server", "scoring.urls=[http://a:1]", "rollout=vllm_server", "rollout.urls=[http://b:1]")


@cache
def student(of: str, *overrides: str) -> Model:
    config = composed(*overrides)
    return student_model(config, MODELS[of], "cuda", gather=sharding(config, machine_for(config.doctor, "auto")).gather)


def plan(of: str, *overrides: str, micro: int = 18_432) -> Plan:
    config = composed(*overrides, f"optim.micro_batch_tokens={micro}")
    machine = machine_for(config.doctor, "auto")
    made = student(of, *overrides)
    return Plan(
        config=config,
        machine=machine,
        student=made,
        teacher=made,
        lengths=lengths(config),
        window=Uniform().bounds,
        needs_batch=False,
        sharding=sharding(config, machine),
    )


def update(of: str, *overrides: str, micro: int = 18_432) -> Place:
    return next(place for place in plan(of, *overrides, micro=micro).places() if place.stage == "update")


# Sums by hand for 8 GPUs, GiB: weights and Adam's moments in float32, gathered in bfloat16; see docs/scaling.md.
BY_HAND = [("8B", 16_384, True, 32), ("4B", 16_384, False, 96)]


@pytest.mark.process  # seconds: 36 layers, forward and backward
@pytest.mark.parametrize(("of", "micro", "checkpointing", "gib"), BY_HAND)
def test_the_plan_agrees_with_arithmetic_by_hand(of: str, micro: int, checkpointing: bool, gib: float) -> None:
    whole = ("rollout.max_tokens=14336", "data.max_prompt_tokens=2048")  # one sequence is a micro-batch
    settings = f"student.gradient_checkpointing={str(checkpointing).lower()}"
    found = update(of, "+experiment=aime", *SERVERS, *whole, settings, "doctor.card=h100", "doctor.gpus=8", micro=micro)
    assert found.total / GIB == pytest.approx(gib, rel=0.2)


EIGHT_GPUS = ("doctor.card=h100", "doctor.gpus=8", "parallel=fsdp", "data.batch_size=64", "rollout.max_tokens=512")


def terms(place: Place) -> dict[str, float]:
    return {term.what: term.bytes for term in place.terms}


@pytest.mark.process
def test_each_process_keeps_its_share_and_gathers_blocks() -> None:
    made = plan("small", *EIGHT_GPUS, *SERVERS)  # nothing else happens here
    count = made.student.shape.parameters
    block, rest = (count - 2 * 64_000 - 64) // 3, 2 * 64_000 + 64

    def shared(**changed: Any) -> dict[str, float]:
        return terms(replace(made, sharding=replace(made.sharding, **changed)).places()[2])

    found = shared()
    assert found["student's weights"] == found["gradients"] == count * 4 / 8
    assert found["Adam's moments"] == count * 8 / 8
    assert found["gathered weights"] == (2 * block + rest) * 4
    assert found["gradients being summed"] == block * (4 + 4) + rest * 4
    half = shared(gather="bfloat16")
    assert half["gathered weights"] == (2 * block + rest) * 2
    assert half["student's weights"] == found["student's weights"]
    assert half["gradients being summed"] == block * (2 + 4) + rest * 2
    assert shared(reshard=False)["gathered weights"] == count * 4
    assert shared(shards=2)["student's weights"] == count * 4 / 2
    assert "gathered weights" not in shared(local=1, shards=1)


@pytest.mark.process
def test_adapters_alone_have_gradients() -> None:
    found = terms(update("small", *EIGHT_GPUS, "student.lora.rank=4"))
    trained = student("small", *EIGHT_GPUS, "student.lora.rank=4").shape.trained
    assert found["Adam's moments"] == trained * 8 / 8
    assert found["gradients being summed"] == trained / 3 * 8  # of one block of three


def test_a_rank_samples_and_updates_its_share_of_the_batch() -> None:
    made = plan("small", *EIGHT_GPUS, micro=10**6)
    assert made.sequences == made.micro_batch(10**6).rows == 8
    rollout = made.places()[0]
    assert rollout.where == "each of 8 GPUs"
    assert terms(rollout)["gathered weights"] == made.student.shape.parameters * 4, "all of them, while it samples"
    assert next(term for term in rollout.terms if term.what == "keys and values").how.startswith("8 sequences")


def test_a_sharded_teacher_keeps_its_head_whole() -> None:
    parts = Parts(block=100, rest=1010, block_trained=0, rest_trained=0, head=1000)
    shared = Sharding(local=8, shards=8, teacher=True)
    weights = Term("teacher's weights", 2 * (10 * 100 + 1010))
    kept, whole = shared.scorer(weights, parts, 2)
    assert (kept.bytes, whole.bytes) == (2 * 1010 / 8, 2 * (1000 + 2 * 100 + 10))
    assert shared.scorer(weights, parts, 2)[0].shards == 8
    assert Sharding(local=8, shards=8).scorer(weights, parts, 2) == [weights]


def test_the_fewest_processes_that_would_do() -> None:
    terms = [Term("whole", 30.0), Term("divided", 10.0, shards=8)]
    assert Place("update", "", 100.0, terms).fewest(1.0) == 2  # 80 in 70
    assert Place("update", "", 50.0, terms).fewest(1.0) == 4
    assert Place("update", "", 100.0, terms).fewest(0.5) == 4
    assert Place("update", "", 30.0, terms).fewest(1.0) is None


@pytest.mark.parametrize(
    ("signal", "kept", "each"),
    [
        ("sampled", None, 0),
        ("top_k", "the teacher's likeliest tokens", 8 * 64),
        ("full", "the teacher's hidden states", 4 * 64),
    ],
)
def test_what_a_served_teacher_leaves_here(signal: str, kept: str | None, each: int) -> None:
    """Records of a batch, and with hidden states its head."""
    batch = ("loss.top_k=64", "data.batch_size=4", "rollout.max_tokens=100")
    found = plan("small", f"loss.signal={signal}", *batch, *SERVERS)
    assert [(term.what, term.bytes) for term in found.records()] == ([(kept, 4 * 100 * each)] if kept else [])
    ahead = plan("small", f"loss.signal={signal}", *batch, *SERVERS, "rollout.ahead=1")
    assert [term.bytes for term in ahead.records()] == ([2 * 4 * 100 * each] if kept else []), "two batches at one time"
    terms = {term.what: term.bytes for place in found.places() for term in place.terms}
    assert terms.get("teacher's head") == (64 * 1000 * 4 if signal == "full" else None)
    assert "teacher's weights" not in terms


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def ranks(*overrides: str) -> tuple[int, int, int]:
        config: Config = composed(*overrides)
        found = sharding(config, machine_for(config.doctor, "cpu"))
        return found.ranks, found.local, found.shards

    card = ("doctor.card=h100", "doctor.gpus=8")
    assert ranks(*card) == ranks("parallel=fsdp") == (1, 1, 1)
    assert ranks("parallel=fsdp", *card) == (8, 8, 8)
    assert ranks("parallel=fsdp", *card, "doctor.machines=4", "parallel.replicate=4") == (32, 8, 8)
    assert ranks("parallel=fsdp", *card, "parallel.processes=4") == (4, 4, 4)
    assert ranks("parallel=fsdp", "parallel.processes=2") == (2, 2, 2)
