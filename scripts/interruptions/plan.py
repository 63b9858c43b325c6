"""What is done to which run, and when: all of it drawn from the seed."""

import random
from dataclasses import dataclass

# How often each is drawn. What is done to files is done after a SIGKILL, as a crash would.
SIGNALS = {
    "SIGKILL": 6,
    "SIGKILL, all its processes": 2,
    "SIGTERM": 3,
    "SIGTERM, all its processes": 1,
    "SIGHUP": 3,
    "SIGHUP, all its processes": 1,
}
DISK = {"disk full": 5}
FILES = {
    "metrics.jsonl: torn tail": 2,
    "samples.jsonl: torn tail": 2,
    "metrics.jsonl: cut below the checkpoint": 1,
    "newest checkpoint: a file cut": 1,
    "newest checkpoint: a file garbled": 1,
    "newest checkpoint: a file missing": 1,
    "config.yaml: empty": 1,
    "config.yaml: NULs": 1,
    "config.yaml: missing": 1,
    "about.json: empty": 1,
    "leftover drafts": 1,
    "files of the user's beside": 1,
}
SERVERS = {
    "server: SIGKILL": 4,
    "server: SIGKILL of its engine": 2,
    "all servers: SIGKILL": 2,
    "server: stopped for a moment": 4,
    "server: stopped beyond http.timeout_s": 2,
}
KINDS = {
    "hf": SIGNALS | DISK | FILES,
    "vllm": SIGNALS | DISK | FILES,
    "vllm_server": {"SIGKILL": 3, "SIGTERM": 2, "SIGHUP": 2, "disk full": 1, **SERVERS},
    "study": {
        "SIGKILL": 3,
        "SIGKILL, a child": 3,
        "SIGKILL, all its processes": 2,
        "SIGTERM": 2,
        "SIGHUP": 1,
        "SIGTERM, a child": 1,
    },
}
MOMENTS = {"start": 3, "line": 6, "draft": 3, "end": 1}


@dataclass(frozen=True)
class Moment:
    """When, within a session.

    Attributes:
        kind: "start", "line" (after the nth line about a step), "draft" (while the nth checkpoint is being written) or
            "end" (while final/ is).
        number: for "start", the part of the start-up that has passed; else which.
        delay: further time: after a line in steps, while something is written in about the time that takes.
    """

    kind: str
    number: float
    delay: float

    def __str__(self) -> str:
        if self.kind == "start":
            return f"{self.number:.0%} of the start-up"
        if self.kind == "line":
            return f"line {self.number:.0f} + {self.delay:.1f} steps"
        return f"{self.kind} {self.number:.0f} + {self.delay:.1f}"


@dataclass(frozen=True)
class Fault:
    """One interruption.

    Attributes:
        kind: a key of `KINDS`.
        save_every: steps between checkpoints in the session that it ends.
        amount: in [0, 1): how much of a file is left, which file it is, how long a server is stopped.
    """

    kind: str
    moment: Moment
    save_every: int
    amount: float


@dataclass(frozen=True)
class Plan:
    """One run: how it samples, and the interruptions it gets until it has ended."""

    index: int
    rollout: str
    faults: tuple[Fault, ...]


def draw(seed: int, index: int, rollouts: list[str], *, disk: bool, most: int = 10) -> Plan:
    """The plan of run `index`, the same for the same seed.

    Args:
        rollouts: taken in turns.
        disk: False where no small disk can be mounted.
        most: interruptions of one run.
    """
    drawn = random.Random(f"{seed}-{index}")
    rollout = rollouts[index % len(rollouts)]
    kinds = {kind: weight for kind, weight in KINDS[rollout].items() if disk or kind not in DISK}
    faults = [
        Fault(
            kind=drawn.choices(list(kinds), list(kinds.values()))[0],
            moment=_moment(drawn, rollout),
            save_every=drawn.choice([1, 1, 1, 2, 3]),
            amount=drawn.random(),
        )
        for _ in range(most)
    ]
    return Plan(index, rollout, tuple(faults))


def _moment(drawn: random.Random, rollout: str) -> Moment:
    kind = drawn.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    number, delay = drawn.uniform(0.05, 1.0), drawn.uniform(0.0, 1.5)
    if kind == "start":
        return Moment(kind, number, 0.0)
    return Moment(kind, float(drawn.randint(1, 3)), delay)
