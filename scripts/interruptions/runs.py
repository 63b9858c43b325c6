"""One run of a campaign: interrupted by its plan, resumed each time, and compared with an uninterrupted run's."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interruptions import files
from interruptions.plan import DISK, FILES, SERVERS, Fault, Plan
from interruptions.processes import Session, left_running, send, shared_memory, temporary, warm_up
from interruptions.servers import TIMEOUT_S, Fleet

STEPS = 12
SMOKE = (
    *("+experiment=smoke", f"run.steps={STEPS}", "run.keep=2", "eval.every=4", "eval.benchmarks.smoke.limit=8"),
    *("data.batch_size=8", "data.limit=64", "rollout.max_tokens=24", "run.samples=2"),
)
STUDY = (*SMOKE, "run.steps=6", "ablate.arms=[uniform,iw]", "ablate.seeds=[1]", "ablate.workers=2", "eval.greedy=false")
HANGS = 300.0  # seconds after which a session counts as hung
STATUS = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGHUP": (129, -1)}  # the second before Python is set up
MAY_LOSE_METRICS = "metrics.jsonl: cut below the checkpoint"


@dataclass
class Interruption:
    """What was done and what came of it.

    Attributes:
        lost: steps that are taken again.
        problems: what should not be.
    """

    run: int
    rollout: str
    kind: str
    moment: str
    did: str = ""
    status: int | None = None
    said: str = ""
    lost: int = 0
    problems: list[str] = field(default_factory=list[str])


@dataclass
class Ended:
    """How a run ended, after all its interruptions."""

    run: int
    rollout: str
    interruptions: int
    sessions: int
    seconds: float
    same_weights: bool | None = None
    distance: float | None = None
    whole_metrics: bool = False
    left: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Reference:
    """A run that was never interrupted."""

    weights: dict[str, bytes]
    metrics: dict[str, list[dict[str, Any]]]
    samples: dict[str, list[dict[str, Any]]]
    startup: float
    step: float


@dataclass
class Place:
    """Where a worker's runs are: `disk`, a small file system of their own, or a plain folder."""

    work: Path
    disk: Path
    preload: bool
    fleet: Fleet | None = None
    extra: tuple[str, ...] = ()


def overrides(rollout: str, place: Place) -> list[str]:
    """The command line, without run.dir and run.save_every."""
    if rollout == "study":
        return ["ablate", *STUDY, *place.extra]
    served = ()
    if rollout == "vllm_server":
        assert place.fleet is not None
        # One request at a time: a batch of several rounds by what else is in it, and that is a matter of timing.
        served = (f"rollout.urls=[{place.fleet.urls}]", "rollout.http.connections=1", "rollout.http.backoff=0.1")
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
    while session.status() is None and not session.step_lines():
        time.sleep(0.02)
    startup = time.monotonic() - session.began
    if not session.wait(2 * HANGS) or session.status():
        raise RuntimeError(f"the uninterrupted run of {rollout} failed: {session.said()}")
    step = (time.monotonic() - session.began - startup) / STEPS
    return Reference(weights(folder), table(folder, "metrics.jsonl"), table(folder, "samples.jsonl"), startup, step)


def weights(folder: Path) -> dict[str, bytes]:
    """The final weights of each run in a folder."""
    return {
        str(run.relative_to(folder)): (run / "final" / "model.safetensors").read_bytes()
        for run in files.run_folders(folder)
        if (run / "final" / "model.safetensors").exists()
    }


def table(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """A jsonl file of each run in a folder, less what the clock and the machine's memory say."""
    return {
        str(run.relative_to(folder)): [
            {key: value for key, value in row.items() if not key.startswith(("time", "memory/"))}
            for row in files.rows(run / name)
        ]
        for run in files.run_folders(folder)
    }


class Run:
    """One run and its interruptions.

    Args:
        allowed: asked before each interruption; False: the run is only brought to its end.
        note: called with each interruption once it is over.
    """

    def __init__(
        self,
        plan: Plan,
        place: Place,
        whole: Reference,
        allowed: Callable[[], bool],
        note: Callable[[Interruption], None],
    ):
        self.plan, self.place, self.whole, self.allowed, self.note = plan, place, whole, allowed, note
        self.folder = place.disk / f"run-{plan.index}"
        self.mark = f"{place.work.name}-{plan.index}"
        self.sessions = place.work / "sessions"
        self.started = self.interruptions = self.kept = 0
        self.filler = place.disk / "filler"
        self.config = b""
        self.done: list[str] = []
        self.open: tuple[Fault, Interruption] | None = None  # a server's, in the session that runs

    def carry_out(self) -> Ended:
        """To its end."""
        began, memory = time.monotonic(), shared_memory()
        session: Session | None = None
        problems: list[str] = []
        for fault in self.plan.faults:
            if not self.allowed():
                break
            session = session or self._start(fault)
            found = self._interrupt(session, fault)
            if found is not None:
                self.interruptions += 1
                self.note(found)
            if session.status() is None:
                continue  # a server was harmed, and the run goes on
            session = None
            if self._finished():
                break
        problems += self._finish(session)
        ended = Ended(self.plan.index, self.plan.rollout, self.interruptions, self.started, 0.0, problems=problems)
        self._compare(ended, memory)
        ended.seconds = round(time.monotonic() - began, 1)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended

    # ------------------------------------------------------------------------------------------ sessions

    def _start(self, fault: Fault | None) -> Session:
        arguments = [*overrides(self.plan.rollout, self.place), f"run.dir={self.folder}"]
        if self.plan.rollout != "study":
            arguments.append(f"run.save_every={fault.save_every if fault else 1}")
            arguments += ["run.resume=true"] if self.started else []
        else:
            arguments.append("run.save_every=1")
        if fault is not None and fault.kind.endswith("beyond http.timeout_s"):
            arguments.append(f"rollout.http.timeout_s={TIMEOUT_S}")
        self.started += 1
        self.before = {run: self._size(run) for run in files.run_folders(self.folder)}
        return Session(arguments, self.sessions, self.mark, self.place.preload)

    @staticmethod
    def _size(run: Path) -> tuple[int, int]:
        file = run / "metrics.jsonl"
        return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0)

    def _finished(self) -> bool:
        """True where nothing is left to do, as far as can be seen."""
        reported = self.plan.rollout != "study" or (self.folder / "report.html").exists()
        done = weights(self.folder).keys() == self.whole.weights.keys()
        return done and reported and not list(files.drafts(self.folder))

    def _interrupt(self, session: Session, fault: Fault) -> Interruption | None:
        """None if the session ended before the moment came."""
        found = Interruption(self.plan.index, self.plan.rollout, fault.kind, str(fault.moment))
        if not self._wait_for(session, fault):
            if session.status() is None:
                found.problems.append(f"hung for {HANGS:.0f} s")
                send(signal.SIGKILL, session.tree())
                session.wait(10)
                return found
            return self._ended_by_itself(session, found)
        self._act(session, fault, found)
        if fault.kind in FILES:
            found.did = self._tear(fault) or ""
            found.kind = fault.kind if found.did else "SIGKILL, all its processes"
        self.done.append(found.kind)
        if fault.kind in SERVERS:
            self.open = (fault, found)
        if session.status() is not None:
            self._judge(session, fault, found)
        return found

    def _ended_by_itself(self, session: Session, found: Interruption) -> Interruption | None:
        """A session that nobody interrupted ends well, or was refused for what the last interruption left."""
        if self.open is not None:
            self._judge(session, *self.open)
            return None
        self._check_steps(session, found.problems)
        if session.status() == 0 and not found.problems:
            return None
        found.kind = f"resume after {self.done[-1] if self.done else 'nothing'}"
        found.status, found.said = session.status(), session.said()
        if session.status():
            found.problems.append(f"does not resume: {session.said()}")
            self._repair()
        return found

    def _repair(self) -> None:
        """So that the campaign can go on after a refusal that should not be."""
        for run in files.run_folders(self.folder):
            if self.config and run == self.folder:
                (run / "config.yaml").write_bytes(self.config)

    def _wait_for(self, session: Session, fault: Fault) -> bool:
        """Until the moment has come; False if the session ended or hung before."""
        moment, limit = fault.moment, session.began + HANGS
        seen: set[tuple[str, int]] = set()
        first = session.step_lines() if moment.kind == "line" else 0
        while session.status() is None and time.monotonic() < limit:
            if moment.kind == "start" and time.monotonic() - session.began >= moment.number * self.whole.startup:
                return session.status() is None
            if moment.kind == "line" and session.step_lines() >= first + moment.number:
                time.sleep(moment.delay * self.whole.step)
                return session.status() is None
            if moment.kind == "draft":
                seen |= {(str(each), session.step_lines()) for each in files.drafts(self.folder)}
                if len(seen) >= moment.number:
                    return session.status() is None
            time.sleep(0.002 if moment.kind == "draft" else 0.02)
        return False

    def _act(self, session: Session, fault: Fault, found: Interruption) -> None:
        if (self.folder / "config.yaml").exists() and not self.config:
            self.config = (self.folder / "config.yaml").read_bytes()
        if fault.kind in DISK:
            with self._full_disk(fault.amount) as room:
                found.did = f"{room} bytes left"
                session.wait(60)
            session.wait(HANGS)
            return
        if fault.kind in SERVERS:
            assert self.place.fleet is not None
            found.did = self.place.fleet.harm(fault.kind, fault.amount)
            if fault.kind == "all servers: SIGKILL":
                session.wait(60)
            self.place.fleet.restore()
            return
        name, _, whom = fault.kind.partition(", ")
        number = signal.Signals[name] if fault.kind not in FILES else signal.SIGKILL
        tree = session.tree()
        if fault.kind in FILES or whom == "all its processes":
            found.did = f"{len(tree)} processes"
        elif whom == "a child":
            tree = tree[1:][int(fault.amount * len(tree[1:])) :][:1]
            found.did = f"{len(tree)} child"
        else:
            tree = [session.pid]
        send(number, tree)
        session.wait(HANGS)

    @contextmanager
    def _full_disk(self, amount: float) -> Iterator[int]:
        room = int(amount * 1_200_000)  # a checkpoint has 1,100,000 bytes
        free = shutil.disk_usage(self.place.disk).free
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - room))
        try:
            yield room
        finally:
            self.filler.unlink()

    def _tear(self, fault: Fault) -> str | None:
        return files.tear(self.folder, fault.kind, fault.amount)

    # ------------------------------------------------------------------------------------------ judgement

    def _judge(self, session: Session, fault: Fault, found: Interruption) -> None:
        """Exit status, what it said, steps lost, and what is left running."""
        found.status, found.said = session.status(), session.said()
        name = fault.kind.partition(",")[0]
        expected = STATUS.get(name, (-9,) if fault.kind in FILES else (0, 2))
        if fault.kind.endswith("a child"):
            expected = (0, 1)
        if found.status not in (*expected, 0):
            found.problems.append(f"status {found.status} instead of {expected[0]}")
        if "Traceback" in session.errors.read_text(errors="replace"):
            found.problems.append("a traceback")
        found.problems += [f"left running: {each}" for each in left_running(self.mark)]
        self._check_steps(session, found.problems)
        most = 0 if name in ("SIGTERM", "SIGHUP") or fault.kind in SERVERS else fault.save_every
        kept = [files.newest_whole(run) for run in files.run_folders(self.folder)]
        for run, step in zip(files.run_folders(self.folder), kept, strict=True):
            changed = self._size(run) != self.before.get(run, (0, 0))
            reached = files.steps_taken(run) if changed and fault.kind not in FILES else 0
            found.lost += max(0, reached - step)
        if self.plan.rollout != "study":
            taken = _steps(session)
            found.lost = max(0, max([*taken, self.kept]) - kept[0])
            if fault.kind not in FILES and found.lost > most:
                found.problems.append(f"{found.lost} steps lost, at most {most} should be")
        self.kept, self.open = kept[0] if kept else 0, None

    def _check_steps(self, session: Session, problems: list[str]) -> None:
        """A resumed session must have gone on from the newest whole checkpoint."""
        taken = _steps(session)
        if self.plan.rollout != "study" and taken and taken[0] != self.kept + 1:
            problems.append(f"resumed at step {taken[0]} though checkpoint {self.kept} was whole")

    def _finish(self, session: Session | None) -> list[str]:
        """Bring it to its end without further interruptions; what went wrong with that."""
        problems: list[str] = []
        for _ in range(4):
            if session is None and self._finished():
                return problems
            session = session or self._start(None)
            if not session.wait(2 * HANGS):
                send(signal.SIGKILL, session.tree())
                return [*problems, f"hung for {2 * HANGS:.0f} s, after {self.done[-1:]}"]
            if self.open is not None:
                self._judge(session, *self.open)
                session = None
                continue
            self._check_steps(session, problems)
            if session.status() == 0:
                return problems
            problems.append(f"after {self.done[-1:]}: {session.said()}")
            self._repair()
            session = None
        return problems

    def _compare(self, ended: Ended, memory: set[str]) -> None:
        """With the run that was never interrupted."""
        found = weights(self.folder)
        ended.same_weights = found == self.whole.weights
        if not ended.same_weights:
            both = [(found[name], data) for name, data in self.whole.weights.items() if name in found]
            ended.distance = max((distance(*pair) for pair in both), default=None)
            ended.problems.append("other weights" if ended.distance is not None else "no final weights")
        try:
            metrics, samples = table(self.folder, "metrics.jsonl"), table(self.folder, "samples.jsonl")
            ended.whole_metrics = metrics == self.whole.metrics
            if not ended.whole_metrics:
                ended.problems.append("metrics.jsonl: " + _difference(metrics, self.whole.metrics))
            if samples != self.whole.samples:
                ended.problems.append("samples.jsonl: " + _difference(samples, self.whole.samples))
        except ValueError as error:
            ended.problems.append(f"a line that is not JSON: {error}")
        ended.left = [
            *left_running(self.mark),
            *(f"/dev/shm/{name}" for name in sorted(shared_memory() - memory)),
            *(str(each.relative_to(self.folder)) for each in files.drafts(self.folder)),
            *(f"tmp/{each.name}" for each in temporary(self.sessions).iterdir()),
        ]
        if "files of the user's beside" in self.done:
            missing = [name for name in files.OF_THE_USER if not (self.folder / name).exists()]
            ended.problems += [f"the user's {name} is gone" for name in missing]


def _steps(session: Session) -> list[int]:
    """The steps that a session says it has taken."""
    return [int(found[1]) for line in session.lines() if (found := re.match(r"step (\d+)/", line))]


def _difference(found: dict[str, Any], whole: dict[str, Any]) -> str:
    for name, rows in whole.items():
        steps = [row["step"] for row in found.get(name, []) if "train/loss" in row]
        expected = [row["step"] for row in rows if "train/loss" in row]
        if steps != expected:
            missing, twice = sorted({*expected} - {*steps}), sorted({each for each in steps if steps.count(each) > 1})
            return f"steps missing {missing}, twice {twice}"
        if len(found.get(name, [])) != len(rows):
            return f"{len(found.get(name, []))} lines instead of {len(rows)}"
    return "other values"


def distance(found: bytes, whole: bytes) -> float:
    """How far weights are apart, as a part of their norm."""
    import torch
    from safetensors.torch import load

    ours, theirs = load(found), load(whole)
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (apart / sum(float(torch.Tensor.double(each).square().sum()) for each in theirs.values())) ** 0.5
