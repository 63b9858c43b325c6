"""What a step costs on one, two and four processes: seconds, memory of each rank, and what they spend on each other.

    python scripts/bench_parallel.py             # a random Qwen3 of 60 M parameters
    python scripts/bench_parallel.py --quick     # a tiny one

Every process count is a job of its own over gloo, one thread per rank, with the same records: the teacher scores, the
student is updated. Cores that the ranks share cannot make a step faster; memory per rank must fall. Bytes of weights,
gradients and Adam's moments are counted, not estimated. Collectives cost what the ranks' processor seconds together
exceed those of one process by. One JSON document goes to stdout, a table to stderr.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Qwen3Config

from iwopd.config import OptimConfig
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import shard
from iwopd.models.student import Student
from iwopd.parallel.launcher import Job
from iwopd.parallel.ranks import Ranks, opened
from iwopd.scoring.fake import FakeTeacher
from iwopd.training.objective import Objective
from iwopd.training.update import update
from iwopd.types import Rollout, as_ids, as_logprobs
from iwopd.weighting.iw import Iw

MIB = 2**20
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
}
TINY = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few tokens")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        as_rank(options.rank_of, options.steps, options.quick)
        return 0
    found = {str(count): job(count, options) for count in options.processes}
    print(table(found), file=sys.stderr)
    print(json.dumps(found))
    return 0


def job(count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each of `count` ranks measured."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--steps", str(options.steps), "--rank-of", folder]
        command += ["--quick"] if options.quick else []
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        status = Job(command, count, environment, Path(folder)).run([])
        if status:
            raise subprocess.CalledProcessError(status, command)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def as_rank(folder: Path, steps: int, quick: bool) -> None:
    torch.manual_seed(0)
    with opened(replicate=1, timeout_s=600, wait_s=600, on_gpu=False) as ranks:
        lm = LanguageModel(AutoModelForCausalLM.from_config(Qwen3Config(**(TINY if quick else SHAPE))))
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if isinstance(ranks, Ranks):
            shard(lm, ranks.mesh)
        student = Student(lm, OptimConfig(lr=1e-5), 128 if quick else 1024)
        scored = FakeTeacher().score(rollouts(8, 32 if quick else 256), lambda length: (0, length))
        objective, seconds, peaks = Objective(Iw(), PolicyGradient()), list[float](), list[int]()
        for step in range(steps + 1):
            began = time.perf_counter(), time.process_time()
            update(student, scored, objective, seeds=range(len(scored)))
            if step:
                seconds.append(time.perf_counter() - began[0])
                peaks.append(psutil.Process().memory_info().rss)
            else:
                started = time.process_time()
        held = {"weights": sum(map(local_bytes, lm.parameters()))}
        held["adam"] = sum(local_bytes(value) for state in student.optimizer.state.values() for value in state.values())
        result = {
            "parameters": sum(parameter.numel() for parameter in lm.parameters()),
            "seconds": sorted(seconds)[len(seconds) // 2],
            "processor_seconds": (time.process_time() - started) / steps,
            "resident": max(peaks),
            "weights": held["weights"],
            "gradients": held["weights"],  # one for each weight, of its shape and dtype, freed after each update
            "adam": held["adam"],
        }
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))


def local_bytes(tensor: Any) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.numel() * own.element_size()


def rollouts(count: int, tokens: int) -> list[Rollout]:
    made = []
    for place in range(count):
        ids = as_ids([(7 * place + token) % 500 for token in range(tokens - 3 * place)])
        made.append(Rollout(str(place), ids[:8], ids, as_logprobs([-1.0] * len(ids)), "stop"))
    return made


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    first = next(iter(found.values()))
    alone = state_bytes(first[0])
    spent = sum(rank["processor_seconds"] for rank in first)
    lines = [
        f"{first[0]['parameters'] / 1e6:.1f} M parameters",
        "processes  s/step  weights  gradients  Adam  of one's  resident MiB/rank  processor s/step  of one's",
    ]
    for count, ranks in found.items():
        most = max(ranks, key=state_bytes)
        here = sum(rank["processor_seconds"] for rank in ranks)
        lines.append(
            f"{count:>9}  {max(rank['seconds'] for rank in ranks):6.2f}  {most['weights'] / MIB:7.1f}  "
            f"{most['gradients'] / MIB:9.1f}  {most['adam'] / MIB:4.0f}  {state_bytes(most) / alone:8.3f}  "
            f"{max(rank['resident'] for rank in ranks) / MIB:17.0f}  {here:16.2f}  {here / spent:8.2f}"
        )
    return "\n".join(lines)


def state_bytes(rank: dict[str, Any]) -> int:
    return rank["weights"] + rank["gradients"] + rank["adam"]


if __name__ == "__main__":
    sys.exit(main())
