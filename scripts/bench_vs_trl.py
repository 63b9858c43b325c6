"""One OPD step of the toy pair against TRL's IWOPDTrainer doing the same work (docs/measurements.md).

    pip install 'iwopd[bench]'
    python scripts/bench_vs_trl.py [--steps 12] [--rounds 5]

Same models, prompts, batch of 64, lengths, temperature, γ = 0.5, AdamW with the same rate and clipping. TRL samples
with transformers, iwopd with `rollout=vllm` and, for comparison, `rollout=hf`. Each side is a process of its own, and
they take turns. Seconds per step are the median over the steps after the first two, then over the rounds; memory is the
process's peak of resident memory, all libraries included. iwopd's seconds hold its comparison of engine and trainer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

SIDES = {"TRL, transformers": [], "iwopd, rollout=hf": ["rollout=hf"], "iwopd, rollout=vllm": ["rollout=vllm"]}
WARM_UP = 2  # steps


def run_iwopd(steps: int, overrides: list[str]) -> list[float]:
    """Seconds of each step, by the clock between its lines in metrics.jsonl."""
    from iwopd.launch import launch

    with tempfile.TemporaryDirectory() as room:
        settings = ["eval.every=0", "eval.greedy=false", "eval.benchmarks.toy.limit=2", "run.samples=0"]
        folder = [f"run.dir={room}/run", f"run.steps={steps}", "run.save_every=0"]
        launch("train", "iwopd.commands.train", [*overrides, *settings, *folder])
        rows = [json.loads(line) for line in (Path(room) / "run" / "metrics.jsonl").read_text().splitlines()]
    return [
        sum(seconds for name, seconds in row.items() if name.startswith("time/")) for row in rows if "train/loss" in row
    ]


def run_trl(steps: int) -> list[float]:
    """Seconds of each step, from its beginning to its end."""
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    from iwopd.toy import toy_rows
    from iwopd.toy.models import ensure_models

    @contextmanager
    def silent(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    folders = ensure_models({role: f"toy://standard/{role}" for role in ("student", "teacher")}, silent)
    rows = toy_rows("data.path", "toy://standard", "train")[: 64 * steps]
    # TRL divides the loss by the tokens of the dataset's own answers, which it does not train on: without one, by zero.
    data = Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]}
            for row in rows
        ]
    )
    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: object, **more: object) -> None:
            stamps.append(time.perf_counter())

        def on_train_begin(self, *arguments: object, **more: object) -> None:
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as room:
        settings = IWOPDConfig(
            output_dir=room,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            max_steps=steps,
            max_completion_length=80,
            max_length=160,
            temperature=1.0,
            top_p=1.0,
            iw_opd_gamma=0.5,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = IWOPDTrainer(
            model=AutoModelForCausalLM.from_pretrained(folders["student"]),
            teacher_model=AutoModelForCausalLM.from_pretrained(folders["teacher"]),
            args=settings,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folders["student"]),
            callbacks=[Clock()],
        )
        trainer.train()
    return [later - earlier for earlier, later in pairwise(stamps)]


def peak_mib() -> float:
    """Of this process. VmHWM and not getrusage, whose peak a process takes over from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="only this one, in this process")
    options = parser.parse_args()
    if options.side:
        overrides = SIDES[options.side]
        seconds = run_iwopd(options.steps, overrides) if overrides else run_trl(options.steps)
        print("\n" + json.dumps({"seconds": statistics.median(seconds[WARM_UP:]), "mib": peak_mib()}))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, results in found.items():
            command = [sys.executable, __file__, "--side", side, "--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{side}: {done.stderr[-2000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print("| | seconds per step | of TRL's | peak memory, MiB | of TRL's |\n|---|---|---|---|---|")
    medians = {
        side: {key: statistics.median(result[key] for result in results) for key in ("seconds", "mib")}
        for side, results in found.items()
    }
    peer = medians[next(iter(SIDES))]
    for side, own in medians.items():
        print(
            f"| {side} | {own['seconds']:.2f} | {own['seconds'] / peer['seconds']:.0%} "
            f"| {own['mib']:,.0f} | {own['mib'] / peer['mib']:.0%} |"
        )


if __name__ == "__main__":
    main()
