"""Does a run's memory grow from step to step on a CPU? And what does an update cost?

    python scripts/bench_growth.py --model MODEL --problems problems.jsonl              # rollout=hf, 60 steps; Linux
    python scripts/bench_growth.py … --rollout vllm --steps 60 -- optim.autocast=true   # further settings after --

Runs `iwopd train` with small batches whose lengths differ at every step, and polls the resident memory of its process:
at the end of each step, and the most within it. Prints both every five steps, the last five steps as a ratio of step 5,
and median seconds; one JSON document goes to stdout. The variables that bound caches are the user's to set here too
(e.g. LRU_CACHE_CAPACITY=1024, or MALLOC_MMAP_THRESHOLD_=1048576), to compare with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EVERY = 0.05  # seconds between looks at the process
GIVEN = ("LRU_", "ONEDNN_", "MALLOC_", "OMP_", "GOMP_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of student and teacher")
    parser.add_argument("--problems", required=True, help="jsonl with question and answer")
    parser.add_argument("--rollout", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=4, help="of a step")
    parser.add_argument("--response", type=int, default=64, help="longest, tokens")
    parser.add_argument("settings", nargs="*", help="further settings of iwopd train, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        problem = Path(folder) / "one.jsonl"
        problem.write_text(Path(options.problems).read_text().splitlines()[0] + "\n")
        found = watched(command(options, run, problem), run / "metrics.jsonl", options.steps)
    print(table(found), file=sys.stderr)
    print(json.dumps(found))
    return 0


def command(options: argparse.Namespace, run: Path, problem: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "iwopd", "train", f"run.dir={run}", f"run.steps={options.steps}", "run.save_every=0"),
        *("student=hf", f"student.path={options.model}", "teacher=hf", f"teacher.path={options.model}"),
        *("data=file", f"data.path={options.problems}", "data.prompt_column=question"),
        *(f"data.batch_size={options.prompts}", f"rollout.max_tokens={options.response}"),
        *("benchmark=[file]", f"eval.benchmarks.file.path={problem}", "eval.benchmarks.file.prompt_column=question"),
        *("eval.every=0", "eval.greedy=false", "run.samples=0", "optim.lr=1e-6", "optim.autocast=true"),
        *(f"rollout={options.rollout}", *options.settings),
    ]


def watched(arguments: list[str], metrics: Path, steps: int) -> dict[str, Any]:
    """Run it to its end; per step, MiB and the metrics' seconds."""
    ended, most, processor, peak, seen = list[float](), list[float](), list[float](), 0.0, 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now = resident(process.pid)
            peak = max(peak, now)
            written = len(trained(metrics))
            if written > seen:
                ended += [now] * (written - seen)
                most += [peak] * (written - seen)
                processor += [cpu_seconds(process.pid)] * (written - seen)
                seen, peak = written, now
            time.sleep(EVERY)
        said.seek(0)
        if process.returncode:
            sys.exit(said.read())
    lines = trained(metrics)[:steps]
    stages = {key for line in lines for key in line if key.startswith("time/")}
    return {
        "steps": len(lines),
        "resident_mib": ended,
        "peak_mib": most,
        "cpu_seconds_per_step": round((processor[-1] - processor[1]) / max(1, len(processor) - 2), 3),
        "seconds": {key: round(statistics.median(line.get(key, 0.0) for line in lines), 3) for key in sorted(stages)},
        "environment": {key: value for key, value in os.environ.items() if key.startswith(GIVEN)},
    }


def trained(metrics: Path) -> list[dict[str, float]]:
    if not metrics.exists():
        return []
    whole = metrics.read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if "train/loss" in line]


def resident(process: int) -> float:
    """MiB."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(process: int) -> float:
    """Of all its threads, so far: other programs do not disturb it as they do the time that passes."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def table(found: dict[str, Any]) -> str:
    ended, most, last = found["resident_mib"], found["peak_mib"], len(found["resident_mib"])
    rows = [
        f"step {step:3}  resident {ended[step - 1]:6.0f}  most {most[step - 1]:6.0f} MiB"
        for step in range(5, last + 1, 5)
    ]
    if last >= 10:
        tail = [statistics.fmean(values[-5:]) / values[4] for values in (ended, most)]
        rows.append(f"last five steps / step 5: resident {tail[0]:.3f}, most {tail[1]:.3f}")
    rows.append(f"CPU seconds per step {found['cpu_seconds_per_step']}")
    rows.append("  ".join(f"{key} {value}" for key, value in found["seconds"].items()))
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
