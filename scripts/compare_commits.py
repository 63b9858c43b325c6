"""Do two commits train the same weights? Every kind of training, both commits, final weights compared bit for bit.

    python scripts/compare_commits.py 5925494                    # against HEAD; some minutes on two CPU cores
    python scripts/compare_commits.py 5925494 my-branch --kinds "reverse KL" "LoRA with dropout"

Each commit is checked out into a temporary worktree of its own and trains the smallest pair (`+experiment=smoke`, made
once in the cache folder) for a few steps at a constant learning rate: the kinds that resuming is tested with, and those
that change what is scored, cut or minimised. Weights are equal only on one machine, with one number of threads.

Prints a table; exit status 1 where any kind differs or fails.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = (
    *("+experiment=smoke", "run.steps=4", "run.save_every=0", "eval.every=2", "eval.benchmarks.smoke.limit=8"),
    *("data.batch_size=8", "data.limit=64", "rollout.max_tokens=24", "run.samples=2", "optim.schedule=constant"),
)
SCHEME = """
def weights(given):
    return (1 + given.positions / given.lengths[:, None]).to(given.advantages) * given.mask
"""
MIXTURE = (
    *("data.path=null", "data.limit=null", "+data.sources.a.path=toy://smoke", "+data.sources.a.weight=3"),
    "+data.sources.b={path: toy://smoke, split: test, teacher: other}",
    "+teachers.other={path: toy://smoke/student, dtype: float32}",
)
KINDS: dict[str, Sequence[str]] = {
    # the kinds of tests/runs/test_run.py
    "uniform": ["weighting=uniform"],
    "last30": ["weighting=last30"],
    "random30": ["weighting=random30"],
    "prefix_ratio": ["weighting=prefix_ratio"],
    "prefix_mask": ["weighting=prefix_mask"],
    "sampler log-probs": ["scoring.student_logprobs=sampler"],
    "reverse KL": ["loss=reverse_kl"],
    "two updates per batch": ["optim.updates_per_batch=2"],
    "several samples": ["rollout.n=2"],
    "LoRA with dropout": ["student.lora.rank=4", "student.lora.dropout=0.2"],
    "bf16, checkpointed": ["optim.autocast=true", "student.gradient_checkpointing=true"],
    "cosine with warm-up": ["optim.schedule=cosine", "optim.warmup_steps=2"],
    "processed sampling": ["rollout.temperature=0.8", "rollout.top_p=0.9", "rollout.top_k=20"],
    # and others
    "iw": [],
    "iw_signed": ["weighting=iw_signed"],
    "first30": ["weighting=first30"],
    "prefix_boost": ["weighting=prefix_boost"],
    "growing_horizon": ["weighting=growing_horizon"],
    "reverse KL, two updates, LoRA": ["loss=reverse_kl", "optim.updates_per_batch=2", "student.lora.rank=4"],
    "mean per sequence": ["loss.normalize=sequence", "weighting=last30"],
    "custom weighting": ["weighting=custom", "weighting.path=compared_scheme:weights"],
    "ExOPD": ["loss.exopd_lambda=1.25", "base.dtype=float32"],
    "two teachers": MIXTURE,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktrees are removed
    print(f"{'kind':32}{options.before[:12]:>14}{options.after[:12]:>14}  same weights")
    different = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        checked_out(options.before) as old,
        checked_out(options.after) as new,
    ):
        (Path(scratch) / "compared_scheme.py").write_text(SCHEME)
        for number, kind in enumerate(options.kinds):
            digests = [
                trained(tree, KINDS[kind], Path(scratch) / f"{number}-{side}") for side, tree in enumerate((old, new))
            ]
            same = digests[0] is not None and digests[0] == digests[1]
            different += not same
            shown = [digest[:8] if digest else "failed" for digest in digests]
            print(f"{kind:32}{shown[0]:>14}{shown[1]:>14}  {'yes' if same else 'NO'}", flush=True)
    print(f"{len(options.kinds) - different} of {len(options.kinds)} kinds end in the same weights")
    return 1 if different else 0


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of `commit`, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(REPOSITORY), *arguments], check=True, capture_output=True)


def trained(tree: Path, settings: Sequence[str], run: Path) -> str | None:
    """SHA-256 of the final weights' files; None where the training failed, which it says."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "iwopd", "train", *SMALL, *settings, f"run.dir={run}"]
    done = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{tree.parent.name}: {' '.join(settings)}: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    digest = hashlib.sha256()
    for file in sorted((run / "final").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
