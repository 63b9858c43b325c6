"""Seconds per training step alone, and with a second program of the same kind beside it, by how threads are set up.

    python scripts/bench_threads.py                                # the smoke pair; every way, on a quiet machine
    python scripts/bench_threads.py --ways program one --steps 20
    python scripts/bench_threads.py --model MODEL --problems problems.jsonl --alone   # another model, alone

Each way is a set of environment variables; `program` is none of them: what iwopd chooses. Medians over steps of the
time that passed, the first two left out; with two at once, over both. One JSON document goes to stdout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "program": {},
    "libraries": {"OMP_NUM_THREADS": "CORES", "GOMP_SPINCOUNT": ""},
    "short spin": {"OMP_NUM_THREADS": "CORES", "GOMP_SPINCOUNT": "10000"},
    "shorter spin": {"OMP_NUM_THREADS": "CORES", "GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_NUM_THREADS": "CORES", "OMP_WAIT_POLICY": "passive"},
    "one": {"OMP_NUM_THREADS": "1"},
}
OURS = ("OMP_", "GOMP_", "KMP_", "IWOPD_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="not two at once")
    parser.add_argument("--model", help="folder of student and teacher; the smoke pair without it")
    parser.add_argument("--problems", help="jsonl with question and answer, for --model")
    options = parser.parse_args()
    found = {}
    for way in options.ways:
        found[way] = {str(count): measured(options, WAYS[way], count) for count in ((1,) if options.alone else (1, 2))}
        print(
            f"{way:14}" + "".join(f"  {count}: {value:.3f} s" for count, value in found[way].items()), file=sys.stderr
        )
    print(json.dumps(found))
    return 0


def measured(options: argparse.Namespace, way: dict[str, str], count: int) -> float:
    """Median seconds per step of `count` runs at one time."""
    cores = str(len(os.sched_getaffinity(0)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    environment |= {key: cores if value == "CORES" else value for key, value in way.items()}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(number) for number in range(count)]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "iwopd", "train", f"run.dir={run}", *settings(options)],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for run in runs
        ]
        statuses = [process.wait() for process in started]
        if any(statuses):
            sys.exit("a run failed")
        return statistics.median(seconds for run in runs for seconds in steps(run))


def settings(options: argparse.Namespace) -> list[str]:
    quiet = [f"run.steps={options.steps}", "run.save_every=0", "run.samples=0", "eval.every=0", "eval.greedy=false"]
    if options.model is None:
        return ["+experiment=smoke", *quiet, "eval.benchmarks.smoke.limit=8"]
    return [
        *("student=hf", f"student.path={options.model}", "teacher=hf", f"teacher.path={options.model}"),
        *("data=file", f"data.path={options.problems}", "data.prompt_column=question", "data.batch_size=4"),
        *("benchmark=[file]", f"eval.benchmarks.file.path={options.problems}"),
        *("eval.benchmarks.file.prompt_column=question", "eval.benchmarks.file.limit=2", "rollout.max_tokens=32"),
        *quiet,
    ]


def steps(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [sum(line[key] for key in line if key.startswith("time/")) for line in lines if "train/loss" in line]
    return found[2:]


if __name__ == "__main__":
    sys.exit(main())
