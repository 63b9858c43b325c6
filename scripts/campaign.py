"""Interrupt training at random moments, resume it each time, and compare its end with an uninterrupted run's.

    python scripts/campaign.py --kills 300 --minutes 60 --workers 2 --out campaign      # Linux
    python scripts/campaign.py --kills 10 --minutes 5 --rollouts hf --preload

Runs of `+experiment=smoke` are interrupted: by SIGKILL, SIGTERM and SIGHUP of the process, of its children or of both;
by a full disk; by a crash that tears files of the run's folder; by servers that are killed or stopped for a while. Each
is resumed until it ends. Its weights must be those of a run that was never interrupted, to the bit, and so must every
line of metrics.jsonl and samples.jsonl but for times; no process, shared memory or draft may be left. What is done, to
which run and when is drawn from `--seed`; how far a run has come at that moment is a matter of the machine.

The small disk that is filled, and a /dev/shm of its own, need `unshare --user --map-root-user --mount`; where that is
not allowed, no disk is filled, and the table says so. Writes campaign.json and campaign.md to `--out`, and prints the
latter; exits with 1 if anything was lost that should not be.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
from interruptions import table
from interruptions.plan import KINDS, Plan, draw
from interruptions.runs import Run
from interruptions.servers import Fleet
from interruptions.table import Ended, Interruption
from interruptions.whole import Place, Reference, reference

INSIDE = "IWOPD_CAMPAIGN_NAMESPACE"  # environment: this process may mount
DISK_MIB = 64


def main() -> int:
    options = parsed()
    if not os.environ.get(INSIDE):
        enter_namespace()
    can_mount = os.environ.get(INSIDE) == "1"
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=options.work) as work, ExitStack() as stack:
        end_all_when_stopped(work)
        places = [make_place(Path(work) / f"worker-{index}", options, can_mount) for index in range(options.workers)]
        if can_mount:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
        campaign = Campaign(options, places, can_mount)
        try:
            campaign.prepare(stack, Path(work))
            campaign.run()
        finally:
            if can_mount:
                for place in places:
                    subprocess.run(["umount", "--lazy", str(place.disk)], check=True)
        return campaign.report()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="interruptions in all")
    parser.add_argument("--minutes", type=float, default=10, help="after these no run is interrupted any more")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--rollouts", default="hf", help=f"taken in turns, by commas: {', '.join(KINDS)}")
    parser.add_argument("--preload", action="store_true", help="fork runs from a process that has imported torch")
    parser.add_argument("--out", type=Path, help="folder for campaign.json and campaign.md")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one by default")
    parser.add_argument("settings", nargs="*", help="further settings of iwopd train, after --")
    options = parser.parse_args()
    options.rollouts = options.rollouts.split(",")
    if unknown := set(options.rollouts) - set(KINDS):
        parser.error(f"--rollouts: {', '.join(unknown)} is none of {', '.join(KINDS)}")
    return options


def enter_namespace() -> None:
    """Restart this program where it may mount; returns where that is not allowed."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    allowed = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    os.environ[INSIDE] = "1" if allowed else "no"
    if allowed:
        os.execvp(command[0], [*command, sys.executable, *sys.argv])


def end_all_when_stopped(work: str) -> None:
    """Asked to stop, this process ends with all that it started. (Handled here, a SIGHUP that nohup has this process
    ignore is not ignored by the runs.)"""

    def stop(number: int, frame: object) -> None:
        for child in psutil.Process().children(recursive=True):
            child.kill()
        shutil.rmtree(work, ignore_errors=True)
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def make_place(work: Path, options: argparse.Namespace, can_mount: bool) -> Place:
    disk = work / "disk"
    disk.mkdir(parents=True)
    if can_mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)], check=True)
    return Place(work, disk, options.preload, extra=tuple(options.settings))


class Campaign:
    """Runs in several threads, until enough was interrupted."""

    def __init__(self, options: argparse.Namespace, places: list[Place], disk: bool):
        self.options, self.places, self.disk = options, places, disk
        self.interruptions: list[Interruption] = []
        self.runs: list[Ended] = []
        self.references: dict[str, Reference] = {}
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._fleet_in_use = False
        self._waiting: list[Plan] = []
        self._next = 0

    def prepare(self, stack: ExitStack, work: Path) -> None:
        """Servers, and one uninterrupted run of each kind."""
        if "vllm_server" in self.options.rollouts:
            fleet = stack.enter_context(Fleet(work / "servers"))
            for place in self.places:
                place.fleet = fleet
        for rollout in dict.fromkeys(self.options.rollouts):
            self.references[rollout] = reference(rollout, self.places[0])
            self._say(f"uninterrupted {rollout}: {self.references[rollout].startup:.1f} s to the first step")
        self.began = time.monotonic()

    def run(self) -> None:
        """Until `kills` or `minutes` are reached, and every run that was begun has ended."""
        with ThreadPoolExecutor(len(self.places)) as pool:
            for done in [pool.submit(self._work, place) for place in self.places]:
                done.result()

    def _work(self, place: Place) -> None:
        while self._go_on():
            plan = self._take()
            try:
                ended = Run(plan, place, self.references[plan.rollout], self._go_on, self._note).carry_out()
            finally:
                if plan.rollout == "vllm_server":
                    self._fleet_in_use = False
            with self._lock:
                self.runs.append(ended)
            self._say(
                f"run {ended.run} ({ended.rollout}): {ended.interruptions} interruptions, {ended.seconds} s, "
                f"{'same weights' if ended.same_weights else 'OTHER WEIGHTS'} {' '.join(ended.problems + ended.left)}"
            )

    def _take(self) -> Plan:
        """The next plan; one for servers waits while they are in use."""
        with self._lock:
            while True:
                for plan in self._waiting:
                    if plan.rollout != "vllm_server" or not self._fleet_in_use:
                        self._waiting.remove(plan)
                        self._fleet_in_use |= plan.rollout == "vllm_server"
                        return plan
                self._waiting.append(draw(self.options.seed, self._next, self.options.rollouts, disk=self.disk))
                self._next += 1

    def _go_on(self) -> bool:
        minutes = (time.monotonic() - self.began) / 60
        return len(self.interruptions) < self.options.kills and minutes < self.options.minutes

    def _note(self, found: Interruption) -> None:
        with self._lock:
            self.interruptions.append(found)
        self._say(
            f"  run {found.run} {found.kind} ({found.did}) at {found.moment}: status {found.status}, lost {found.lost}"
            f"{' PROBLEM ' if found.problems else ''}{'; '.join(found.problems)}"
        )

    @staticmethod
    def _say(text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

    def report(self) -> int:
        """Write and print the tables; the exit status."""
        minutes = (time.monotonic() - self.began) / 60
        given = {
            "seed": self.options.seed,
            "interruptions": len(self.interruptions),
            "runs": len(self.runs),
            "minutes": round(minutes, 1),
            "python": platform.python_version(),
        }
        if not self.disk:
            given["full disk"] = "not tried, for nothing may be mounted here"
        text = table.markdown(given, self.interruptions, self.runs)
        print(text)
        if self.options.out:
            self.options.out.mkdir(parents=True, exist_ok=True)
            (self.options.out / "campaign.md").write_text(text, encoding="utf-8")
            found = table.document(given, self.interruptions, self.runs)
            (self.options.out / "campaign.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 1 if table.count_problems(self.interruptions, self.runs) or not self.interruptions else 0


if __name__ == "__main__":
    sys.exit(main())
