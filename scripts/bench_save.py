"""What saving a checkpoint costs beside what the disk needs for its bytes (docs/measurements.md).

    python scripts/bench_save.py [--sizes 25M 135M] [--repeats 3] [--dir DIR]
    python scripts/bench_save.py --quick       # a tiny model, for breakage

A student with its optimiser's state is saved as `iwopd train` does it (model, optimiser, manifest with a SHA-256 of
every file, all flushed), in turns with plain files of the same bytes, written and flushed one after the other. Medians.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_parts.common import TINY_SHAPE, make_model
from vs_trl.sizes import QWEN3_25M_SHAPE, SMOLLM2_135M_SHAPE

from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.runs.checkpoints import Checkpoints
from iwopd.runs.files import flush
from iwopd.toy.tokenizer import make_tokenizer

SHAPES = {"tiny": TINY_SHAPE, "25M": QWEN3_25M_SHAPE, "135M": SMOLLM2_135M_SHAPE}
BLOCK = 2**24  # bytes written at one time


def measure(size: str, repeats: int, room: Path) -> dict[str, float]:
    """Bytes of a checkpoint; seconds of the plain files, of the whole save, and of its manifest and flushing."""
    student, tokenizer = Student(LanguageModel(make_model(SHAPES[size], 0)), OptimConfig(lr=1e-4)), make_tokenizer()
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    student.apply_gradients(1.0)
    student.clear_gradients()
    sealed, files = list[float](), list[int]()

    def save(place: int) -> None:
        run = room / f"run-{place}"
        run.mkdir()

        def write(folder: Path) -> None:
            student.save(folder, tokenizer)
            files[:] = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
            sealed.append(time.perf_counter())

        Checkpoints(run).save(1, write, keep=1)
        sealed.append(time.perf_counter() - sealed.pop())

    def plain(place: int) -> None:
        block = os.urandom(BLOCK)
        for number, count in enumerate(files):
            file = room / f"plain-{place}-{number}"
            with file.open("wb") as stream:
                for start in range(0, count, BLOCK):
                    stream.write(block[: min(BLOCK, count - start)])
            flush(file)

    found: dict[str, list[float]] = {"save": [], "plain": []}
    sides: dict[str, Callable[[int], None]] = {"save": save, "plain": plain}
    for place in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side(place)
            found[name].append(time.perf_counter() - start)
    return {"bytes": sum(files), "seal": median(sealed), **{name: median(each) for name, each in found.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["25M", "135M"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", help="folder on the disk to be measured; else the system's for temporary files")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once")
    options = parser.parse_args()
    sizes, repeats = (["tiny"], 1) if options.quick else (options.sizes, options.repeats)
    rows = ["| | MB | plain files, s | MB/s | a save, s | MB/s | of it flushing and digests | save / plain |"]
    rows.append("|---|" + "---|" * 7)
    found: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.dir) as room:
            own = found[size] = measure(size, repeats, Path(room))
        mega = own["bytes"] / 1e6
        rows.append(
            f"| {size} | {mega:,.0f} | {own['plain']:.2f} | {mega / own['plain']:,.0f} | {own['save']:.2f} "
            f"| {mega / own['save']:,.0f} | {own['seal']:.2f} | {own['save'] / own['plain']:.2f} |"
        )
    print("\n".join(rows), file=sys.stderr)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
