"""Does iwopd work on this GPU, does it compute what the CPU computes, and how fast is it?

    python scripts/gpu_check.py          # exit status 0: good, 1: a check failed, 2: no CUDA device
    python scripts/gpu_check.py --gpus 8 # also several processes, a GPU each
    python scripts/gpu_check.py --cpu    # the same code at tiny sizes on the CPU, to test this script

Needs no network and no installation: iwopd comes from the src/ beside this folder; torch ≥ 2.11, transformers ≥ 5.17,
hydra-core, omegaconf, datasets and math-verify must be there. Takes under ten minutes. Prints a table to stderr and one
JSON document to stdout (and to --out); a part that fails leaves the others. The parts, each a file in gpu_parts/:

- smoke: `iwopd train +experiment=smoke` on the device, twice; accuracy before and after, and whether both runs end in
  the same bits.
- compiled: some steps of it with student.compile and teacher.compile; seconds of each, the first ones with compilation.
- numerics: a tiny float32 model on device and CPU; largest difference of log-probs (nats), of each parameter's gradient
  (share of its largest element) and of the loss; share of tokens that they sample differently from one seed.
- update: one update of a randomly initialised Qwen3-0.6B in several ways (length, gradient checkpointing, attention,
  torch.compile, deterministic kernels): median seconds, response tokens per second, memory (MiB) beside what
  `iwopd doctor` expects. `mfu` is the share of the device's peak that forward and backward need by count (matrices and
  causal attention; what gradient checkpointing recomputes is not counted).
- kernels: where the time of the plainest goes.
- scoring, rollout: the teacher's pass, and `rollout=hf`.
- fsdp: the update with FSDP2 on this card alone.
- trl: teacher's pass and update of TRL's IW-OPD trainer on the same sequences, where trl is installed.
- parallel (--gpus N): the smoke run by N processes; how far its final weights are from one process's, relative.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what run.deterministic sets

import torch
import transformers
from gpu_parts.common import QWEN3_06B_SHAPE, TINY_SHAPE, Work, device_name, empty
from gpu_parts.numerics import numerics
from gpu_parts.runs import parallel, smoke, smoke_compiled
from gpu_parts.sharded import sharded
from gpu_parts.speed import kernels, rollout, scoring, updates, ways
from gpu_parts.trl import peer

PARTS = ("smoke", "compiled", "numerics", "update", "kernels", "scoring", "rollout", "fsdp", "trl", "parallel")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to test this script")
    parser.add_argument("--gpus", type=int, default=1, help="also train on so many, a process for each")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="without torch.compile, which takes minutes on a CPU")
    parser.add_argument("--out", type=Path, help="also write the JSON document here, after every part")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device; --cpu tests the script itself", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.cpu else "cuda")
    torch.set_float32_matmul_precision("highest")  # no TF32
    start = time.perf_counter()
    report: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name, part in parts(device, options).items():
        if name in options.parts:
            report[name] = section(name, part)
            empty(device)
            if options.out:
                options.out.write_text(json.dumps(report, indent=2))
    report["seconds"] = round(time.perf_counter() - start, 1)
    report["ok"] = all(found.get("ok", True) for found in report.values() if isinstance(found, dict))
    print(table(report), file=sys.stderr)
    print(text := json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(text)
    return 0 if report["ok"] else 1


def parts(device: torch.device, options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    shape = TINY_SHAPE if options.cpu else QWEN3_06B_SHAPE
    long, short = (Work(2, 8, 64), Work(4, 8, 16)) if options.cpu else (Work(4, 128, 4096), Work(32, 128, 1024))
    sampled = Work(4, 8, 16) if options.cpu else Work(16, 128, 128)
    compiled = not options.quick
    found = {
        "smoke": lambda: smoke(device),
        "compiled": lambda: smoke_compiled(device),
        "numerics": lambda: numerics(device),
        "update": lambda: updates(device, shape, ways(long, short, compiled)),
        "kernels": lambda: kernels(device, shape, long, compiled),
        "scoring": lambda: scoring(device, shape, [long, short], compiled),
        "rollout": lambda: rollout(device, shape, sampled),
        "fsdp": lambda: sharded(device, shape, long, compiled),
        "trl": lambda: peer(device, shape, [long, short]),
    }
    return found if options.gpus == 1 else {**found, "parallel": lambda: parallel(device, options.gpus)}


def section(name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `function` reports, and whether it is well; an error ends the section, not the program."""
    print(f"{name} …", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        found = {"ok": True, **function()}
    except Exception as error:
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    found["took_s"] = round(time.perf_counter() - start, 1)
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def table(report: dict[str, Any]) -> str:
    """What was timed, as a Markdown table."""
    lines = [
        f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}",
        "| | seconds | tokens/s | MFU | peak, MiB | doctor's estimate |",
        "|---|---|---|---|---|---|",
    ]
    for part in ("update", "scoring", "rollout", "fsdp", "trl"):
        rows = {"": report[part]} if "seconds" in report.get(part, {}) else report.get(part, {})
        for name, row in rows.items():
            if isinstance(row, dict) and "seconds" in row:
                ratio = row.get("estimate_ratio")
                lines.append(
                    f"| {part} {name} | {row['seconds']} | {row['tokens_per_s']} | {row['mfu'] or ''} "
                    f"| {row['memory_peak_mib'] or ''} | {'' if ratio is None else f'{ratio:.0%}'} |"
                )
            elif isinstance(row, dict) and "error" in row:
                lines.append(f"| {part} {name} | {row['error']} | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
