"""Tiny random models of many architectures, each with the toy's byte-level tokenizer beside it."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from iwopd.toy.tokenizer import make_tokenizer

VOCABULARY = 272  # the tokenizer's 260 and padding, as most published models have
EOS, PAD = 257, 256

# initializer_range makes distributions as peaked as a trained model's, so that a wrong place is a wrong number.
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
GROUPED = {**_SHAPE, "num_key_value_heads": 1}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
_EAGER = {"attn_implementation": "eager"}  # sdpa leaves the attention's cap out
_CAPS = {"final_logit_softcapping": 4.0, "attn_logit_softcapping": 6.0, "query_pre_attn_scalar": 32}
_LATENT = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
_LINEAR = {
    "shared_expert_intermediate_size": 32,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

# What each adds to the plain one is said behind it.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),  # biases, a tied head
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 32}),  # scaled embeddings
    "gemma2": ("Gemma2Config", {**GROUPED, **_CAPS, "head_dim": 32, "sliding_window": 16, **_EAGER}),  # caps
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 32, "sliding_window": 16}),  # two kinds of RoPE
    "gpt_neox": ("GPTNeoXConfig", _SHAPE),  # one matrix for q, k and v, partial RoPE
    "qwen3_moe": ("Qwen3MoeConfig", {**GROUPED, **_EXPERTS, "head_dim": 32, "output_router_logits": True}),
    "phi": ("PhiConfig", _SHAPE),  # a head with a bias
    "granite": ("GraniteConfig", {**GROUPED, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "cohere": ("CohereConfig", {**GROUPED, "logit_scale": 0.3}),
    "gpt_oss": ("GptOssConfig", {**GROUPED, **_EXPERTS, "head_dim": 32, "sliding_window": 16}),  # sinks, eager only
    "deepseek_v3": ("DeepseekV3Config", {**GROUPED, **_LATENT, "num_key_value_heads": 2}),  # latent attention
    "qwen3_next": ("Qwen3NextConfig", {**GROUPED, **_EXPERTS, **_LINEAR, "head_dim": 32}),  # half of it recurrent
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2}),  # all of it
    "opt": ("OPTConfig", {**_SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32}),  # learned positions
}


def make(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in float32; `changes` go to its config."""
    kind, options = ARCHITECTURES[name]
    given = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD} | options
    config = getattr(transformers, kind)(**(given | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases and norms too, which start at 0 and 1
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def load(folder: Path) -> PreTrainedModel:
    """As transformers would, with the attention that all architectures have."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """In HF format, with the tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def problems(folder: Path) -> tuple[str, ...]:
    """Settings that read a few problems from files made in `folder`."""
    rows = [{"prompt": f"What is {index} + {index * index}?", "answer": str(index + index**2)} for index in range(9)]
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("data=file", f"data.path={file}", "benchmark=[file]", f"eval.benchmarks.file.path={file}")


SMALL = (
    *("student=hf", "teacher=hf", "teacher.dtype=float32", "optim=toy", "optim.warmup_steps=0", "optim.lr=1e-3"),
    *("run.steps=2", "run.save_every=0", "run.samples=1", "data.batch_size=8", "rollout.max_tokens=20"),
    *("eval.every=0", "eval.k=1", "eval.benchmarks.file.limit=3"),
)
