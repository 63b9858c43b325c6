"""One run of a campaign: interrupted by its plan, resumed each time, and compared with an uninterrupted run's."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interruptions import files
from interruptions.plan import DISK, FILES, SERVERS, Fault, Plan
from interruptions.processes import Session, left_running, send, shared_memory, temporary
from interruptions.servers import TIMEOUT_S
from interruptions.table import Ended, Interruption
from interruptions.whole import HANGS, Place, Reference, compare, names_in, overrides, weights

WRITING = 0.03  # seconds that a checkpoint takes, about
CUT = "metrics.jsonl: cut below the checkpoint"  # what is lost then cannot be had back, and must be said
STATUS = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGHUP": (129, -1)}  # the second before Python is set up


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
        self.started = self.resumed = self.interruptions = self.kept = 0
        self.filler = place.disk / "filler"
        self.config = b""
        self.pids: list[int] = []
        self.done: list[str] = []
        self.problems: list[str] = []
        self.said_lost = False  # that lines of metrics.jsonl are
        self.torn = False  # since the last session
        self.open: tuple[Fault, Interruption] | None = None  # a server's, in the session that runs

    def carry_out(self) -> Ended:
        """To its end."""
        began, memory = time.monotonic(), shared_memory()
        try:
            self._finish(self._interrupt_often())
        finally:
            left_running(self.mark, self.pids, 0.0)
        counts = (self.interruptions, self.started, self.resumed)
        ended = Ended(self.plan.index, self.plan.rollout, *counts, seconds=round(time.monotonic() - began, 1))
        ended.problems = self.problems
        self._compare(ended, memory)
        for folder in (self.folder, self.sessions):
            shutil.rmtree(folder, ignore_errors=True)
        return ended

    def _interrupt_often(self) -> Session | None:
        """By the plan; the session that runs after it, where only a server was harmed."""
        session: Session | None = None
        for fault in self.plan.faults:
            if not self.allowed():
                break
            session = session or self._start(fault)
            found = self._interrupt(session, fault)
            if found is not None:
                self.interruptions += 1
                self.note(found)
            if session.status() is None:
                continue  # a server was harmed, and the run continues
            if self.open is not None:
                self._judge(session, *self.open)
            session = None
            if self._finished():
                break
        return session

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
        session = Session(arguments, self.sessions, self.mark, self.place.preload)
        self.pids.append(session.pid)
        return session

    @staticmethod
    def _size(run: Path) -> tuple[int, int]:
        file = run / "metrics.jsonl"
        return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0)

    def _finished(self) -> bool:
        """True where nothing is left to do, as far as can be seen."""
        reported = self.plan.rollout != "study" or (self.folder / "report.html").exists()
        done = weights(self.folder).keys() == self.whole.weights.keys()
        return done and reported and not self.torn and not list(files.drafts(self.folder))

    def _interrupt(self, session: Session, fault: Fault) -> Interruption | None:
        """None if the session ended before the moment came."""
        found = Interruption(self.plan.index, self.plan.rollout, fault.kind, str(fault.moment))
        if not self._wait_for(session, fault):
            if session.status() is None:
                found.problems.append(f"hung for {HANGS:.0f} s")
                send(signal.SIGKILL, session.tree())
                session.wait(10)
                return found
            self._ended_by_itself(session)
            return None
        self._act(session, fault, found)
        if fault.moment.kind != "start":  # what was torn before is whole again
            self.torn = False
        if fault.kind in FILES:
            found.did = files.tear(self.folder, fault.kind, fault.amount) or ""
            found.kind = fault.kind if found.did else "SIGKILL, all its processes"
            self.torn = True
        self.done.append(found.kind)
        if fault.kind in SERVERS:
            self.open = (fault, found)
        if session.status() is not None:
            self._judge(session, fault, found)
        return found

    def _ended_by_itself(self, session: Session) -> None:
        """A session that nobody interrupted ends well; or for a server's sake; or does not resume, which is a fault."""
        if self.open is not None:
            self._judge(session, *self.open)
            return
        self._check_steps(session, self.problems)
        self.torn = self.torn and session.status() != 0
        if session.status():
            self.problems.append(f"after {self.done[-1:]}: {session.said()}")
            self._repair()

    def _repair(self) -> None:
        """So that the campaign can go on after a refusal that should not be."""
        for run in files.run_folders(self.folder):
            if self.config and run == self.folder:
                (run / "config.yaml").write_bytes(self.config)

    def _wait_for(self, session: Session, fault: Fault) -> bool:
        """Until the moment has come; False if the session ended or hung before."""
        moment, limit = fault.moment, time.monotonic() + HANGS
        stale, seen = files.draft_marks(self.folder), set[tuple[str, int]]()
        first = self._lines(session) if moment.kind == "line" else 0
        while session.status() is None and time.monotonic() < limit:
            if moment.kind == "start" and time.monotonic() - session.began >= moment.number * self.whole.startup:
                return session.status() is None
            if moment.kind == "line" and self._lines(session) >= first + moment.number:
                time.sleep(moment.delay * self.whole.step)
                return session.status() is None
            if moment.kind == "draft":
                seen |= files.draft_marks(self.folder) - stale
                if len(seen) >= moment.number:
                    time.sleep(moment.delay * WRITING)
                    return session.status() is None
            if moment.kind == "end" and any("final" in name for name, _ in files.draft_marks(self.folder) - stale):
                time.sleep(moment.delay * WRITING)
                return session.status() is None
            time.sleep(0.002 if moment.kind in ("draft", "end") else 0.02)
        return False

    def _lines(self, session: Session) -> int:
        return files.lines_written(self.folder) if self.plan.rollout == "study" else session.step_lines()

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
        with self.filler.open("wb", buffering=0) as file:
            for chunk in (b"x" * 2**20, b"x" * 2**12):
                with suppress(OSError):
                    while file.write(chunk) == len(chunk):
                        pass
            file.truncate(max(0, file.tell() - room))
        try:
            yield room
        finally:
            self.filler.unlink()

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
        found.problems += [f"left running: {each}" for each in left_running(self.mark, self.pids)]
        self._check_steps(session, found.problems)
        most = 0 if name in ("SIGTERM", "SIGHUP") or fault.kind in SERVERS else fault.save_every
        kept = [files.newest_whole(run) for run in files.run_folders(self.folder)]
        for run, step in zip(files.run_folders(self.folder), kept, strict=True):
            changed = self._size(run) != self.before.get(run, (0, 0))
            reached = files.steps_taken(run) if changed and fault.kind not in FILES else 0
            found.lost += max(0, reached - step)
        if self.plan.rollout != "study":
            taken = session.steps()
            found.lost = max(0, max([*taken, self.kept]) - kept[0])
            if fault.kind not in FILES and found.lost > most:
                found.problems.append(f"{found.lost} steps lost, at most {most} should be")
        self.kept, self.open = kept[0] if kept else 0, None

    def _check_steps(self, session: Session, problems: list[str]) -> None:
        """A resumed session must have been resumed from the newest whole checkpoint."""
        self.said_lost |= any("lost" in line and ".jsonl" in line for line in session.lines())
        taken = session.steps()
        self.resumed += bool(taken) and taken[0] > 1
        if self.plan.rollout != "study" and taken and taken[0] != self.kept + 1:
            problems.append(f"resumed at step {taken[0]} though checkpoint {self.kept} was whole")

    def _finish(self, session: Session | None) -> None:
        """Bring it to its end without further interruptions."""
        for _ in range(4):
            if session is None and self._finished():
                return
            session = session or self._start(None)
            if not session.wait(2 * HANGS):
                send(signal.SIGKILL, session.tree())
                self.problems.append(f"hung for {2 * HANGS:.0f} s, after {self.done[-1:]}")
                return
            ended_well = session.status() == 0
            self._ended_by_itself(session)
            if ended_well:
                return
            session = None

    def _compare(self, ended: Ended, memory: set[str]) -> None:
        """With the run that was never interrupted."""
        compare(ended, self.folder, self.whole, lines_lost=CUT in self.done and self.said_lost)
        memory = shared_memory() - memory
        # Of vLLM's processes that are killed stay semaphores and segments, of which nobody else knows.
        of_vllm = {each for each in memory if "vllm" in self.plan.rollout and each.startswith(("psm_", "sem.mp-"))}
        memory -= of_vllm
        ended.left = [
            *left_running(self.mark, self.pids),
            *(f"/dev/shm/{name}" for name in sorted(memory)),
            *(str(each.relative_to(self.folder)) for each in files.drafts(self.folder)),
        ]
        ended.temporary = sorted(names_in(temporary(self.sessions)) - self.whole.temporary | of_vllm)
        if "files of the user's beside" in self.done:
            missing = [name for name in files.OF_THE_USER if not (self.folder / name).exists()]
            ended.problems += [f"the user's {name} is gone" for name in missing]
