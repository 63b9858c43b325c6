"""The README's table and picture: weighting schemes on the toy pair, several seeds, real training runs.

    python scripts/toy_study.py --arms uniform iw first30 last30 --seeds 1 2 3 4 5 --out runs/toy_study

Every run is `iwopd train weighting=ARM seed=SEED`, two at a time with one thread each; finished ones are not run again.
For a seed, all arms start from the same student and see the same prompts, sampling noise and evaluation problems.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Curve = dict[int, float]


def train(folder: Path, arm: str, seed: int, overrides: list[str]) -> Curve:
    """One run; accuracy by step."""
    if not (folder / "final" / "config.json").exists():
        command = [sys.executable, "-m", "iwopd", "train", f"weighting={arm}", f"seed={seed}", f"run.dir={folder}"]
        settings = ["run.resume=true", "eval.every=5", "eval.greedy=false", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *settings], check=True, env=environment, stdout=subprocess.DEVNULL)
        print(f"{arm} seed {seed}: done", file=sys.stderr)
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}


def mean_sd(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def table(curves: dict[str, list[Curve]]) -> str:
    """Accuracy at step 10 and at the end, mean ± sd over seeds, and each arm's paired difference to the first."""
    baseline = next(iter(curves))
    last = max(curves[baseline][0])
    lines = [
        f"| weighting | before | step 10 | step {last} | step 10 − {baseline} | step {last} − {baseline} |",
        "|---|" + "---|" * 5,
    ]
    for arm, runs in curves.items():
        cells = [mean_sd([run[step] for run in runs]) for step in (0, 10, last)]
        for step in (10, last):
            differences = [run[step] - base[step] for run, base in zip(runs, curves[baseline], strict=True)]
            ahead = sum(difference > 0 for difference in differences)
            cells.append(
                "" if arm == baseline else f"{statistics.mean(differences):+.3f} (ahead in {ahead} of {len(runs)})"
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(curves: dict[str, list[Curve]], file: Path) -> None:
    """Accuracy over steps: the mean over seeds, with a band of one standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for arm, runs in curves.items():
        steps = sorted(runs[0])
        means = [statistics.mean(run[step] for run in runs) for step in steps]
        spread = [statistics.stdev([run[step] for run in runs]) if len(runs) > 1 else 0.0 for step in steps]
        (line,) = axes.plot(steps, means, label=arm, linewidth=2)
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step (64 prompts each)", ylabel="accuracy, mean@2", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["uniform", "iw", "first30", "last30"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/toy_study"))
    parser.add_argument("--picture", type=Path, default=Path("docs/toy_study.svg"))
    parser.add_argument(
        "overrides", nargs="*", help="further Hydra overrides of every run, e.g. +experiment=toy_late_errors"
    )
    options = parser.parse_args()
    jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(lambda job: train(options.out / job[0] / str(job[1]), *job, options.overrides), jobs)
        by_job = dict(zip(jobs, found, strict=True))
    curves = {arm: [by_job[arm, seed] for seed in options.seeds] for arm in options.arms}
    picture(curves, options.picture)
    print(table(curves))


if __name__ == "__main__":
    main()
