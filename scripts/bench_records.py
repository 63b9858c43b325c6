"""What a rollout batch costs in host memory and time, from its records to metrics; there is no model.

    python scripts/bench_records.py            # 1,024 responses of 16,384 tokens, at most 1.5 GB; Linux
    python scripts/bench_records.py --quick    # a few small ones

Synthetic rollouts go through score (a fake teacher), collate, weights and metrics: in micro-batches, as an update takes
them, and all at once, as it does for a scheme that needs the whole batch. Prints per stage seconds, MiB that stay and
the most it took beyond what was held before; one JSON document goes to stdout.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from iwopd.models.batch import collate
from iwopd.models.packing import token_batches
from iwopd.scoring.fake import FakeTeacher
from iwopd.training.metrics import sizes
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.types import Rollout, ScoredRollout
from iwopd.weighting.iw import Iw
from iwopd.weighting.prefix_ratio import PrefixRatio

PROMPT, VOCABULARY, MICRO_BATCH_TOKENS = 512, 151_936, 65_536
IW = Objective(Iw(), student_logprobs="sampler")
PREFIX_RATIO = Objective(PrefixRatio(), student_logprobs="sampler")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16_384, help="of each response")
    parser.add_argument("--quick", action="store_true", help="8 responses of 512 tokens")
    options = parser.parse_args()
    found = bench(8, 512) if options.quick else bench(options.responses, options.tokens)
    print(table(found), file=sys.stderr)
    print(json.dumps(found))
    return 0


def bench(responses: int, tokens: int) -> dict[str, Any]:
    passed_through(make_rollouts(2, 8), {})  # what is loaded on first use is no batch's
    stages: dict[str, dict[str, float]] = {}
    rollouts = measured("records", lambda: make_rollouts(responses, tokens), stages)
    scored, metrics = passed_through(rollouts, stages)
    return {
        "responses": responses,
        "tokens": sum(len(rollout.response_ids) for rollout in rollouts),
        "record_bytes": sum(map(record_bytes, scored)),
        "stages": stages,
        "metrics": metrics,
    }


def make_rollouts(responses: int, tokens: int) -> list[Rollout]:
    drawn = numpy.random.default_rng(0)

    def ids(count: int) -> Any:
        return drawn.integers(VOCABULARY, size=count, dtype=numpy.int32)

    return [
        Rollout(f"p{index}", ids(PROMPT), ids(tokens), -drawn.standard_exponential(tokens, numpy.float32), "length")
        for index in range(responses)
    ]


def passed_through(
    rollouts: list[Rollout], stages: dict[str, dict[str, float]]
) -> tuple[list[ScoredRollout], dict[str, float]]:
    scored = measured("score", lambda: score(FakeTeacher(-1.0), rollouts, IW.weighting.window(0.0)), stages)
    metrics = measured("micro-batches", lambda: micro_batches(scored), stages)
    seeds = range(len(scored))
    measured("whole batch", lambda: PREFIX_RATIO.of_whole_batch(scored, seeds, 0.0), stages)
    return scored, metrics


def micro_batches(scored: list[ScoredRollout]) -> dict[str, float]:
    weight = advantage = 0.0
    lengths = [len(record.rollout.prompt_ids) + record.stop for record in scored]
    for group in token_batches(lengths, MICRO_BATCH_TOKENS):
        batch = collate([scored[index] for index in group], group)
        advantages = IW.advantages(batch, None)
        weight += IW.weights(batch, advantages, 0.0).sum().item()
        advantage += advantages.abs().sum().item()
    found = sizes(scored)
    count = found["tokens/generated"]
    return found | {"train/weight_mean": weight / count, "train/abs_advantage_mean": advantage / count}


def record_bytes(record: ScoredRollout) -> int:
    """Of its ids and the sampler's and the teacher's log-probs."""
    rollout = record.rollout
    arrays = (rollout.prompt_ids, rollout.response_ids, rollout.sampler_logprobs, record.teacher_logprobs)
    return sum(array.nbytes for array in arrays)


def measured(stage: str, work: Callable[[], Any], stages: dict[str, dict[str, float]]) -> Any:
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    held, most = ((memory(field) - before) / 2**20 for field in ("VmRSS", "VmHWM"))
    stages[stage] = {"seconds": round(seconds, 3), "held_mib": round(held, 1), "peak_mib": round(most, 1)}
    return result


def memory(field: str) -> int:
    """Bytes: VmRSS is resident now, VmHWM was at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def table(found: dict[str, Any]) -> str:
    mib = found["record_bytes"] / 2**20
    rows = [f"{found['responses']} responses, {found['tokens']} tokens: ids and log-probs take {mib:.1f} MiB"]
    for stage, row in found["stages"].items():
        figures = f"stays {row['held_mib']:8.1f}  most {row['peak_mib']:8.1f} MiB"
        rows.append(f"{stage:14} {row['seconds']:8.2f} s  {figures}")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
