"""Sampling with rollout=hf, keys and values with room for tokens to come, in turns with transformers' own cache, which
copies all of them at every token (docs/measurements.md).

    python scripts/bench_cache.py [--repeats 5]
    python scripts/bench_cache.py --quick       # a tiny model, for breakage

Random models in float32, one thread; CPU seconds of a batch, medians. Both give the same tokens (checked).
"""

import argparse
import json
import sys
import time
from statistics import median

import torch
from gpu_parts.common import NEVER, TINY_SHAPE, Work, make_model, make_prompts
from transformers import DynamicCache
from vs_trl.sizes import QWEN3_25M_SHAPE

from iwopd.models.language_model import LanguageModel
from iwopd.rollout import decoding
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine

CACHES = {"with room": decoding.new_cache, "copied": lambda model: DynamicCache(config=model.model.config)}
ALL = {
    "tiny": (TINY_SHAPE, Work(64, 80, 80)),
    "tiny, long": (TINY_SHAPE, Work(64, 80, 400)),
    "25M": (QWEN3_25M_SHAPE, Work(16, 64, 128)),
    "25M, long": (QWEN3_25M_SHAPE, Work(16, 256, 256)),
}


def measure(model: LanguageModel, work: Work, repeats: int) -> dict[str, float]:
    """CPU seconds, by cache; one turn of each warms up."""
    prompts, sampling = make_prompts(work.sequences, work.prompt), Sampling(max_tokens=work.response)
    seconds: dict[str, list[float]] = {name: [] for name in CACHES}
    for _ in range(repeats + 1):
        made = {}
        for name, new_cache in CACHES.items():
            decoding.new_cache = new_cache
            start = time.process_time()
            rollouts = HfEngine(model, [NEVER], work.sequences).generate(prompts, sampling, seed=0, stream=0)
            seconds[name].append(time.process_time() - start)
            made[name] = [each.response_ids.tolist() for each in rollouts]
        assert made["with room"] == made["copied"]
    return {name: median(each[1:]) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model and short responses, once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"tiny": (TINY_SHAPE, Work(4, 8, 8))} if options.quick else ALL
    found = {}
    for name, (shape, work) in sizes.items():
        model = LanguageModel(make_model(shape, 0), name="student")
        found[name] = measure(model, work, 1 if options.quick else options.repeats)
        share = found[name]["with room"] / found[name]["copied"]
        seconds = ", ".join(f"{cache} {each:.2f} s" for cache, each in found[name].items())
        print(f"{name}, {work.sequences} x ({work.prompt} + {work.response}): {seconds}, {share:.0%}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
