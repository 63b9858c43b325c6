"""Does compute follow what is trained on? CPU seconds of score + update: with a window, against the whole response; and
with several responses to a prompt that read it once, against each reading its own.

    python scripts/bench_window.py                       # some minutes on one CPU core
    python scripts/bench_window.py --models toy          # that pair alone

Pairs: the toy's on its own rollouts, of 64 prompts and of 16 with 4 responses each; two random Qwen3 of 25 M parameters
on rollouts of 64 + 512 tokens, and on 8 responses to one prompt, 96 + 96 tokens; two random Llamas of SmolLM2-135M's
shape on 8 responses of 48 + 48. Each arm does what a training
step does after the rollout: the teacher scores, the student is updated, AdamW's step included. Arms take turns within
each repeat, so that a busy machine slows all of them; the first repeat, which makes the optimiser's state, does not
count. Ratios are of medians, to the first arm's. Prompts are read once only where that spares enough tokens.

Prints a table to stderr and one JSON document to stdout; exit status 1 where a ratio is above its goal.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from iwopd import assembly
from iwopd.config import OptimConfig, SourceConfig
from iwopd.data import render
from iwopd.models.language_model import LanguageModel, load_pretrained
from iwopd.models.packing import Packing
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.toy import toy_rows
from iwopd.toy.models import ensure_models
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Ids, Rollout, as_ids, as_logprobs
from iwopd.weighting import Weighting
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

Arm = tuple[Weighting, bool]  # and whether prompts are read once
WINDOWS: dict[str, Weighting] = {
    "uniform": Uniform(),
    **{f"{side}30": Window(side=side, fraction=0.3) for side in ("first", "middle", "last")},
}
ALONE: dict[str, Arm] = {name: (weighting, False) for name, weighting in WINDOWS.items()}
SAMPLES: dict[str, Arm] = {
    f"{name}{end}": (WINDOWS[name], shared)
    for shared, end in ((False, ""), (True, ", shared"))
    for name in ("uniform", "first30")
}
QWEN3_25M = Qwen3Config(
    vocab_size=32_000,
    hidden_size=384,
    intermediate_size=1152,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
Pair = tuple[Student, HfTeacher, list[Rollout], str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS), help="pairs to measure")
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats (%(default)s)")
    options = parser.parse_args()
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "ok": True}
    for name in options.models:
        make, arms, judged, goal = PAIRS[name]
        student, teacher, rollouts, about = make()
        print(f"{name}: {about}", file=sys.stderr)
        found = measured(student, teacher, rollouts, arms, options.repeats)
        report[name] = {"about": about, "arms": found, "goal": {judged: goal}}
        report["ok"] &= found[judged]["ratio"] <= goal
        print(table(found), file=sys.stderr)
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def measured(
    student: Student, teacher: HfTeacher, rollouts: list[Rollout], arms: dict[str, Arm], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds and tokens of each arm."""
    seconds: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    tokens: dict[str, dict[str, float]] = {}
    for _ in range(repeats + 1):
        for arm, (weighting, share) in arms.items():
            student.share_prompts = teacher.share_prompts = share
            began = time.process_time()
            scored = score(teacher, rollouts, weighting.window(0.0))
            between = time.process_time()
            metrics = update(student, scored, Objective(weighting), seeds=range(len(rollouts)))
            seconds[arm].append((between - began, time.process_time() - between))
            read = Packing.of(rollouts, [record.stop for record in scored], share=share).tokens
            tokens[arm] = {"tokens/scored": read, "tokens/trained": metrics["tokens/trained"]}
    found = {}
    for arm, laps in seconds.items():
        counted = laps[1:]
        found[arm] = {
            "score_s": round(median(lap[0] for lap in counted), 4),
            "update_s": round(median(lap[1] for lap in counted), 4),
            "both_s": round(median(map(sum, counted)), 4),
            **tokens[arm],
        }
    whole = next(iter(found.values()))
    for values in found.values():
        values["ratio"] = round(values["both_s"] / whole["both_s"], 3)
        values["scored_share"] = round(values["tokens/scored"] / whole["tokens/scored"], 3)
    return found


def table(arms: dict[str, dict[str, float]]) -> str:
    heads = ("score_s", "update_s", "both_s", "ratio", "tokens/scored", "scored_share", "tokens/trained")
    lines = ["".ljust(16) + "".join(f"{head:>15}" for head in heads)]
    lines += [arm.ljust(16) + "".join(f"{values[head]:15g}" for head in heads) for arm, values in arms.items()]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- pairs


def toy_pair(prompts_count: int = 64, samples: int = 1) -> Pair:
    """The standard toy pair and its student's rollouts."""

    @contextmanager
    def shown(title: str) -> Iterator[Any]:
        print(title, file=sys.stderr)
        yield lambda done, total: None

    folders = ensure_models({role: f"toy://standard/{role}" for role in ("student", "teacher")}, shown)
    cpu = torch.device("cpu")
    models = {
        role: LanguageModel(load_pretrained(folder, key=role, dtype="float32", device=cpu), name=role)
        for role, folder in folders.items()
    }
    tokenizer = assembly.tokenizer("student.path", str(folders["student"]), revision=None, trust_remote_code=False)
    source = SourceConfig(path="toy://standard")
    prompts = render(toy_rows("data.path", source.path, "train")[:prompts_count], source, tokenizer)
    engine = HfEngine(models["student"], [tokenizer.eos_token_id])
    rollouts = engine.generate(prompts, Sampling(n=samples, max_tokens=80), seed=42, stream=0)
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    about = f"{prompts_count} prompts of {len(prompts[0].ids)} tokens, {samples} responses each, of "
    about += f"{sum(lengths) / len(lengths):.1f} tokens on average"
    return trainable(models["student"], 8192), HfTeacher(models["teacher"], cpu), rollouts, about


def random_pair(
    prompts: int = 2, samples: int = 1, prompt: int = 64, response: int = 512, shape: PreTrainedConfig = QWEN3_25M
) -> Pair:
    """Two random models, and random rollouts of one length."""
    models = [LanguageModel(random_model(seed, shape)) for seed in (0, 1)]
    size = sum(parameter.numel() for parameter in models[0].model.parameters())
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> Ids:
        return as_ids(torch.randint(models[0].vocabulary, (count,), generator=drawn).numpy())

    logprobs = as_logprobs([-9.0] * response)
    rollouts = [
        Rollout(f"p{index}", read, ids(response), logprobs, "length", sample)
        for index, read in enumerate([ids(prompt) for _ in range(prompts)])
        for sample in range(samples)
    ]
    about = (
        f"{size / 1e6:.1f} M parameters, {prompts} prompts of {prompt} tokens, {samples} responses each, of {response}"
    )
    return trainable(models[0], 8192), HfTeacher(models[1], torch.device("cpu")), rollouts, about


def random_model(seed: int, shape: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shape)


def trainable(lm: LanguageModel, micro_batch_tokens: int) -> Student:
    return Student(lm, OptimConfig(lr=1e-5), micro_batch_tokens)


PAIRS: dict[str, tuple[Callable[[], Pair], dict[str, Arm], str, float]] = {
    "toy": (toy_pair, ALONE, "first30", 0.45),
    "toy-samples": (lambda: toy_pair(16, 4), SAMPLES, "first30, shared", 0.45),
    "random": (random_pair, ALONE, "first30", 0.33),
    "random-samples": (lambda: random_pair(1, 8, 96, 96), SAMPLES, "uniform, shared", 0.65),
    "135m-samples": (lambda: random_pair(1, 8, 48, 48, SMOLLM2), SAMPLES, "uniform, shared", 0.65),
}

if __name__ == "__main__":
    sys.exit(main())
