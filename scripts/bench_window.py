"""Does compute follow the weighting? Seconds of score + update with a window, against the whole response.

    python scripts/bench_window.py                       # some minutes on one CPU core
    python scripts/bench_window.py --models toy          # that pair alone

Two pairs: the toy's, on its own rollouts (64 prompts, as in a training step), and two random Qwen3 of 25 M parameters
on rollouts of 64 + 512 tokens. Each arm does what a training step does behind the rollout: the teacher scores, the
student is updated, AdamW's step included. Arms take turns within each repeat, so that a busy machine slows all of
them; the first repeat, which makes the optimiser's state, does not count. Ratios are of medians.

Prints a table to stderr and one JSON document to stdout; exit status 1 where first30 takes more than 0.45 of uniform.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from iwopd import assembly
from iwopd.config import OptimConfig, SourceConfig
from iwopd.data import render
from iwopd.models.language_model import LanguageModel, load_pretrained
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

LIMIT = 0.45  # of uniform's seconds, for first30
PROMPT, RESPONSE, SEQUENCES = 64, 512, 2
ARMS: dict[str, Weighting] = {
    "uniform": Uniform(),
    **{f"{side}30": Window(side=side, fraction=0.3) for side in ("first", "middle", "last")},
}
Pair = tuple[Student, HfTeacher, list[Rollout], str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS), help="pairs to measure")
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats (%(default)s)")
    options = parser.parse_args()
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "limit": LIMIT}
    for name in options.models:
        student, teacher, rollouts, about = PAIRS[name]()
        print(f"{name}: {about}", file=sys.stderr)
        report[name] = {"about": about, "arms": measured(student, teacher, rollouts, options.repeats)}
        print(table(report[name]["arms"]), file=sys.stderr)
    ratios = [report[name]["arms"]["first30"]["ratio"] for name in options.models]
    report["ok"] = max(ratios) <= LIMIT
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def measured(
    student: Student, teacher: HfTeacher, rollouts: list[Rollout], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds and tokens of each arm."""
    seconds: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    tokens: dict[str, dict[str, float]] = {}
    for _ in range(repeats + 1):
        for arm, weighting in ARMS.items():
            began = time.perf_counter()
            scored = score(teacher, rollouts, weighting.window(0.0))
            between = time.perf_counter()
            metrics = update(student, scored, Objective(weighting), seeds=range(len(rollouts)))
            seconds[arm].append((between - began, time.perf_counter() - between))
            read = sum(len(record.rollout.prompt_ids) + record.stop for record in scored)
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
    whole = found["uniform"]
    for values in found.values():
        values["ratio"] = round(values["both_s"] / whole["both_s"], 3)
        values["scored_share"] = round(values["tokens/scored"] / whole["tokens/scored"], 3)
    return found


def table(arms: dict[str, dict[str, float]]) -> str:
    heads = ("score_s", "update_s", "both_s", "ratio", "tokens/scored", "scored_share", "tokens/trained")
    lines = ["".ljust(10) + "".join(f"{head:>15}" for head in heads)]
    lines += [arm.ljust(10) + "".join(f"{values[head]:15g}" for head in heads) for arm, values in arms.items()]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- pairs


def toy_pair() -> Pair:
    """The standard toy pair and its student's rollouts to 64 problems."""

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
    prompts = render(toy_rows("data.path", source.path, "train")[:64], source, tokenizer)
    engine = HfEngine(models["student"], [tokenizer.eos_token_id])
    rollouts = engine.generate(prompts, Sampling(max_tokens=80), seed=42, stream=0)
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    about = f"64 rollouts, prompts of {len(prompts[0].ids)}, responses of {sum(lengths) / 64:.1f} tokens on average"
    return trainable(models["student"], 8192), HfTeacher(models["teacher"], cpu), rollouts, about


def random_pair() -> Pair:
    """Two random Qwen3 of 25 M parameters, and random rollouts of one length."""
    models = [LanguageModel(random_model(seed)) for seed in (0, 1)]
    size = sum(parameter.numel() for parameter in models[0].model.parameters())
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> Ids:
        return as_ids(torch.randint(models[0].vocabulary, (count,), generator=drawn).numpy())

    logprobs = as_logprobs([-9.0] * RESPONSE)
    rollouts = [Rollout(f"p{index}", ids(PROMPT), ids(RESPONSE), logprobs, "length") for index in range(SEQUENCES)]
    about = f"{size / 1e6:.1f} M parameters, {SEQUENCES} rollouts, prompts of {PROMPT}, responses of {RESPONSE} tokens"
    return trainable(models[0], 8192), HfTeacher(models[1], torch.device("cpu")), rollouts, about


def random_model(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=12_000,
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )


def trainable(lm: LanguageModel, micro_batch_tokens: int) -> Student:
    return Student(lm, OptimConfig(lr=1e-5), micro_batch_tokens)


PAIRS = {"toy": toy_pair, "random": random_pair}

if __name__ == "__main__":
    sys.exit(main())
