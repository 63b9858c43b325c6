"""A step of IW-OPD against TRL's IWOPDTrainer doing the same work, over sizes (docs/measurements.md).

    pip install 'iwopd[bench]'
    python scripts/bench_vs_trl.py [--sizes toy 25M 135M 0.6B] [--rounds 3] [--steps 4]
    python scripts/bench_vs_trl.py --alone               # scoring and update of given rollouts, nothing sampled
    python scripts/bench_vs_trl.py --quick               # a tiny pair, for breakage

Same models, problems, batch, lengths, temperature, γ = 0.5, AdamW with the same rate and clipping. Beyond the toy,
models are random (or one given with --model), the student has float32 weights under bfloat16 autocast, and the
teacher's are bfloat16, on both sides. TRL samples with transformers (with vLLM: --sides trl_vllm …). Each side is a
process of its own, and they take turns. Figures are medians over the steps after the first, then over the rounds. CPU
seconds are those of the process, whatever else runs on the machine; memory is its peak of resident memory (on a GPU:
what torch allocated), all libraries included. iwopd's seconds hold its comparison of engine and trainer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from vs_trl.sides import Step, iwopd_alone, iwopd_steps, trl_alone, trl_steps
from vs_trl.sizes import SIZES, Pair, prepare

from iwopd.machine import runtime

WARM_UP = 1  # steps
VLLM = {"use_vllm": True, "vllm_mode": "colocate"}
SIDES: dict[str, tuple[str, Callable[[Pair, int, str], list[Step]]]] = {
    "trl": ("TRL, transformers", lambda pair, steps, device: trl_steps(pair, steps, device, {})),
    "trl_vllm": ("TRL, vLLM", lambda pair, steps, device: trl_steps(pair, steps, device, VLLM)),
    "hf": ("iwopd, rollout=hf", lambda pair, steps, device: iwopd_steps(pair, steps, device, ["rollout=hf"])),
    "vllm": ("iwopd, rollout=vllm", lambda pair, steps, device: iwopd_steps(pair, steps, device, _vllm(pair))),
    "trl_alone": ("TRL, scoring + update", trl_alone),
    "alone": ("iwopd, scoring + update", iwopd_alone),
}
STAGES = ("rollout", "score", "update")


def _vllm(pair: Pair) -> list[str]:
    given = ["rollout=vllm", "rollout.parity.warn=1"]
    given += [] if pair.problems is None else ["rollout.engine.kv_cache_gib=0.25"]
    return [*given, "rollout.dtype=bfloat16"] if pair.size.bfloat16 else given


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side of one size, in this process."""
    pair = prepare(options.sizes[0], options.room, device=options.device, model=options.model)
    steps = SIDES[options.side][1](pair, options.steps, options.device)[WARM_UP:]
    found = {key: median(step.get(key, 0.0) for step in steps) for key in ("seconds", "cpu", *STAGES, "tokens")}
    return {**found, "mib": peak_mib(options.device)}


def peak_mib(device: str) -> float:
    """Of this process. VmHWM and not getrusage, whose peak a process takes over from the one that started it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def compare(size: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By side, medians over the rounds; or why it did not run."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for side in options.sides:
            if side in failed:
                continue
            command = [sys.executable, __file__, "--side", side, "--sizes", size, "--steps", str(options.steps)]
            command += ["--device", options.device, "--room", str(options.room)]
            command += ["--model", options.model] if options.model else []
            environment = {**runtime.WAIT, **os.environ}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                failed[side] = lines[-1][:300]
                print(f"{size}, {side}: {done.stderr[-3000:]}", file=sys.stderr)
                continue
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        side: {key: median(result[key] for result in results) for key in results[0]}
        for side, results in found.items()
        if results and side not in failed
    }
    return {side: medians.get(side, {"failed": failed.get(side)}) for side in options.sides}


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Of all sizes; shares are those of the first side, TRL's."""
    lines = [
        "| | | seconds per step | CPU seconds | of TRL's | rollout, score, update | tokens/s | peak, MiB | of TRL's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size, sides in found.items():
        peer = next(iter(sides.values()))
        for side, own in sides.items():
            if "failed" in own:
                lines.append(f"| {size} | {SIDES[side][0]} | {own['failed']} | | | | | | |")
                continue
            stages = ", ".join(f"{own[stage]:.2f}" for stage in STAGES) if own["rollout"] else ""
            shares = [f"{own[key] / peer[key]:.0%}" if key in peer else "" for key in ("cpu", "mib")]
            lines.append(
                f"| {size} | {SIDES[side][0]} | {own['seconds']:.2f} | {own['cpu']:.2f} | {shares[0]} | {stages} "
                f"| {own['tokens'] / own['seconds']:.0f} | {own['mib']:,.0f} | {shares[1]} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[size for size in SIZES if size != "tiny"])
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["trl", "hf", "vllm"], help="the first is the peer"
    )
    parser.add_argument("--alone", action="store_true", help="scoring and update of given rollouts")
    parser.add_argument("--model", help="folder of a model, for sizes other than the toy in place of random ones")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=4, help=f"of each process; the first {WARM_UP} is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny pair, one round of two steps; no vLLM")
    parser.add_argument("--side", choices=SIDES, help="only this one, in this process; with --room")
    parser.add_argument("--room", type=Path, help="folder for the models that are made; else one that is removed")
    options = parser.parse_args()
    if options.side:
        print("\n" + json.dumps(measure(options)))
        return
    if options.alone:
        options.sides = ["trl_alone", "alone"]
    if options.quick:
        options.sizes, options.steps, options.rounds = ["tiny"], 2, 1
        options.sides = [side for side in options.sides if not side.endswith("vllm")]
    with tempfile.TemporaryDirectory() as room:
        options.room = options.room or Path(room)
        found = {size: compare(size, options) for size in options.sizes}
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}", file=sys.stderr)
    print(table(found), file=sys.stderr)
    print(json.dumps(found))
    sys.exit(any("failed" in own for sides in found.values() for own in sides.values()))


if __name__ == "__main__":
    main()
