"""vLLM against transformers: sampling, scoring, weight sync and parity, in one run (docs/measurements.md).

    python scripts/bench_rollout.py [--repeats 5] [--models toy 5M 25M]

Each figure is a median; the two sides take turns. 64 prompts a round. The toy student answers real problems until it
stops; random models write 128 tokens each. Scored rollouts have ragged lengths.
"""

import argparse
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from iwopd.config import OptimConfig
from iwopd.machine import runtime
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.rollout.vllm import WORKER, VllmEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.vllm import VllmTeacher
from iwopd.toy import toy_rows
from iwopd.toy.models import ensure_models
from iwopd.training.parity import measure_parity
from iwopd.types import Prompt, Rollout
from iwopd.vllm.in_process import InProcess, Settings

PROMPTS, LONGEST = 64, 128
# hidden, layers, heads (of 64), key-value heads, MLP width, vocabulary
SHAPES = {"5M": (256, 4, 4, 2, 768, 4096), "25M": (512, 6, 8, 4, 1536, 6144)}
CPU = torch.device("cpu")


@contextmanager
def no_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def random_model(name: str, folder: Path, tokenizer_folder: Path) -> Path:
    hidden, layers, heads, key_value_heads, width, vocabulary = SHAPES[name]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


def make_prompts(name: str, folder: Path) -> list[Prompt]:
    if name != "toy":
        drawn = random.Random(0)
        return [Prompt(str(i), [drawn.randrange(3, 250) for _ in range(28)], "") for i in range(PROMPTS)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        Prompt(
            row["id"],
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
            ),
            "",
        )
        for row in toy_rows("data.path", "toy://standard", "train")[:PROMPTS]
    ]


def ragged(rollouts: list[Rollout]) -> list[Rollout]:
    """The same rollouts cut at random lengths, as real ones end."""
    drawn, cut = random.Random(1), []
    for rollout in rollouts:
        length = drawn.randint(max(1, len(rollout.response_ids) // 8), len(rollout.response_ids))
        cut.append(
            Rollout(
                rollout.prompt_id,
                rollout.prompt_ids,
                rollout.response_ids[:length],
                rollout.sampler_logprobs[:length],
                "length",
            )
        )
    return cut


def medians(repeats: int, *sides: Callable[[], float]) -> list[float]:
    """Median of each side's figure; they take turns, after a round to warm up."""
    rounds = [[side() for side in sides] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def rate(function: Callable[[], int]) -> Callable[[], float]:
    """Tokens per second of a function that returns tokens."""

    def measured() -> float:
        began = time.perf_counter()
        return function() / (time.perf_counter() - began)

    return measured


def measure(name: str, folder: Path, log_file: Path, repeats: int) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    lm = LanguageModel(model)
    student = Student(lm, OptimConfig(lr=1e-4))
    prompts = make_prompts(name, folder)
    sampling = Sampling(max_tokens=80 if name == "toy" else LONGEST)
    stops = [AutoTokenizer.from_pretrained(folder).eos_token_id] if name == "toy" else []
    settings = Settings(str(folder), 256, "float32", sequences=64, kv_cache_gib=0.5)
    os.environ.update(runtime.VLLM)
    with ExitStack() as stack:
        vllm = InProcess(
            "rollout=vllm",
            Settings(**{**vars(settings), "whole_prompts": True}),
            log_file,
            worker_extension_cls=WORKER,
            logprobs_mode="processed_logprobs",
        )
        engine = stack.enter_context(VllmEngine(vllm, stops))
        reference = HfEngine(lm, stops, batch_size=64)
        counter = iter(range(10**6))

        def generate(chosen: HfEngine | VllmEngine) -> Callable[[], int]:
            def run() -> int:
                made = chosen.generate(prompts, sampling, seed=0, stream=next(counter) // 2)
                return sum(len(item.response_ids) for item in made)

            return run

        hf, fast = medians(repeats, rate(generate(reference)), rate(generate(engine)))

        def sync() -> float:
            began = time.perf_counter()
            engine.sync_weights(student, 1)
            return 1000 * (time.perf_counter() - began)

        (sync_ms,) = medians(max(repeats, 5), sync)
        parity = measure_parity(engine, student, prompts[:8], 64, 0)
        rollouts = ragged(engine.generate(prompts, sampling, seed=0, stream=0))
        total = sum(len(item.prompt_ids) + len(item.response_ids) for item in rollouts)
        scorer = InProcess("scoring=vllm", settings, log_file, enable_prefix_caching=False)
        teachers = HfTeacher(lm, CPU), stack.enter_context(VllmTeacher(scorer))

        def score(teacher: HfTeacher | VllmTeacher) -> Callable[[], int]:
            def run() -> int:
                teacher.score(rollouts, lambda length: (0, length))
                return total

            return run

        hf_score, vllm_score = medians(repeats, *(rate(score(teacher)) for teacher in teachers))
    return (
        f"| {name} ({sum(p.numel() for p in model.parameters()) / 1e6:.2f} M) | {hf:,.0f} | {fast:,.0f} | "
        f"{fast / hf:.2f} | {hf_score:,.0f} | {vllm_score:,.0f} | {hf_score / vllm_score:.2f} | {sync_ms:.0f} | "
        f"{parity.max_gap:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["toy", *SHAPES], choices=["toy", *SHAPES])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(
        "| model | hf, tokens/s | vLLM, tokens/s | vLLM / hf | hf scoring, tokens/s | vLLM scoring | hf / vLLM "
        "| sync, ms | parity max gap, nats |"
    )
    print("|---|" + "---|" * 8)
    toy = ensure_models({"student": "toy://standard/student"}, no_progress)["student"]
    with tempfile.TemporaryDirectory() as room:
        for name in options.models:
            folder = toy if name == "toy" else random_model(name, Path(room) / name, toy)
            print(measure(name, folder, Path(room) / "vllm.log", options.repeats), flush=True)


if __name__ == "__main__":
    sys.exit(main())
