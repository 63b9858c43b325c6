"""A run that was never interrupted, and how far another one is from it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interruptions import files
from interruptions.processes import Session, temporary, warm_up
from interruptions.servers import Fleet
from interruptions.table import Ended

STEPS = 12
SMOKE = (
    *("+experiment=smoke", f"run.steps={STEPS}", "run.keep=2", "eval.every=4", "eval.benchmarks.smoke.limit=8"),
    *("data.batch_size=8", "data.limit=64", "rollout.max_tokens=24", "run.samples=2"),
)
STUDY = (*SMOKE, "run.steps=6", "ablate.arms=[uniform,iw]", "ablate.seeds=[1]", "ablate.workers=2", "eval.greedy=false")

HANGS = 300.0  # seconds after which a session counts as hung


@dataclass
class Place:
    """Where a worker's runs are: `disk`, a small file system of their own, or a plain folder."""

    work: Path
    disk: Path
    preload: bool
    fleet: Fleet | None = None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A run that was never interrupted.

    Attributes:
        startup: seconds until it says that it has begun.
        step: seconds of a step, with its part of evaluations.
        temporary: names of temporary files that it leaves.
    """

    weights: dict[str, bytes]
    metrics: dict[str, list[dict[str, Any]]]
    samples: dict[str, list[dict[str, Any]]]
    startup: float
    step: float
    temporary: set[str]


def overrides(rollout: str, place: Place) -> list[str]:
    """The command line, without run.dir and run.save_every."""
    if rollout == "study":
        return ["ablate", *STUDY, *place.extra]
    served = ()
    if rollout == "vllm_server":
        assert place.fleet is not None
        # One request at a time: a batch of several rounds by what else is in it, and that is a matter of timing.
        served = (f"rollout.urls=[{place.fleet.urls}]", "rollout.http.connections=1", "rollout.http.backoff_s=0.1")
    return ["train", *SMOKE, f"rollout={rollout}", *served, *place.extra]


def reference(rollout: str, place: Place, name: str = "reference") -> Reference:
    """Run it to its end; RuntimeError if it does not."""
    folder = place.work / f"{name}-{rollout}"
    if place.preload:
        warm_up()
    session = Session(
        [*overrides(rollout, place), f"run.dir={folder}", "run.save_every=1"],
        place.work / "sessions",
        name,
        place.preload,
    )
    while session.status() is None and not session.step_lines() and not files.lines_written(folder):
        time.sleep(0.02)
    startup = time.monotonic() - session.began
    if not session.wait(2 * HANGS) or session.status():
        raise RuntimeError(f"the uninterrupted run of {rollout} failed: {session.said()}")
    step = (time.monotonic() - session.began - startup) / STEPS
    tables = table(folder, "metrics.jsonl"), table(folder, "samples.jsonl")
    return Reference(weights(folder), *tables, startup, step, names_in(temporary(place.work / "sessions")))


def names_in(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {each.name for each in folder.iterdir()}


def weights(folder: Path) -> dict[str, bytes]:
    """The final weights of each run in a folder."""
    return {
        str(run.relative_to(folder)): (run / "final" / "model.safetensors").read_bytes()
        for run in files.run_folders(folder)
        if (run / "final" / "model.safetensors").exists()
    }


def table(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """A jsonl file of each run in a folder, less what the clock and the machine's memory say, and how the
    engine rounds: that depends on which prompts its cache holds."""
    return {
        str(run.relative_to(folder)): [
            {key: value for key, value in row.items() if not key.startswith(("time", "memory/", "sync/parity"))}
            for row in files.rows(run / name)
        ]
        for run in files.run_folders(folder)
    }


def compare(ended: Ended, folder: Path, whole: Reference, *, lines_lost: bool) -> None:
    """Note in `ended` how a run differs from the one that was never interrupted.

    Args:
        lines_lost: of metrics.jsonl and samples.jsonl, by a disk's fault, and the program has said so.
    """
    found = weights(folder)
    ended.same_weights = found == whole.weights
    if not ended.same_weights:
        both = [(found[name], data) for name, data in whole.weights.items() if name in found]
        ended.distance = max((distance(*pair) for pair in both), default=None)
        ended.problems.append("other weights" if ended.distance is not None else "no final weights")
    try:
        metrics, samples = table(folder, "metrics.jsonl"), table(folder, "samples.jsonl")
    except ValueError as error:
        ended.problems.append(f"a line that is not JSON: {error}")
        return
    ended.whole_metrics = metrics == whole.metrics
    ended.lost_lines = sum(map(len, whole.metrics.values())) - sum(map(len, metrics.values()))
    if not ended.whole_metrics and not (lines_lost and is_part(metrics, whole.metrics)):
        ended.problems.append("metrics.jsonl: " + difference(metrics, whole.metrics))
    if samples != whole.samples:
        ended.problems.append("samples.jsonl: " + difference(samples, whole.samples))


def difference(found: dict[str, Any], whole: dict[str, Any]) -> str:
    for name, rows in whole.items():
        steps = [row["step"] for row in found.get(name, []) if "train/loss" in row]
        expected = [row["step"] for row in rows if "train/loss" in row]
        if steps != expected:
            missing, twice = sorted({*expected} - {*steps}), sorted({each for each in steps if steps.count(each) > 1})
            return f"steps missing {missing}, twice {twice}"
        if len(found.get(name, [])) != len(rows):
            return f"{len(found.get(name, []))} lines instead of {len(rows)}"
        for ours, theirs in zip(found[name], rows, strict=True):
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            if keys:
                return f"step {theirs['step']}: other values of {', '.join(keys)}"
    return "other runs"


def is_part(found: dict[str, Any], whole: dict[str, Any]) -> bool:
    """True where each file's rows are some of the other's, in their order, and none is a duplicate."""
    for name, rows in found.items():
        rest = iter(whole[name])
        if not all(row in rest for row in rows):
            return False
    return True


def distance(found: bytes, whole: bytes) -> float:
    """How far weights are apart, as a part of their norm."""
    import torch
    from safetensors.torch import load

    ours, theirs = load(found), load(whole)
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (apart / sum(float(torch.Tensor.double(each).square().sum()) for each in theirs.values())) ** 0.5
