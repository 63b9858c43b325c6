"""What the training loop works with, and how far it is."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd.config.stored import SCHEMA
from iwopd.errors import RunFolderError
from iwopd.training.collapse import Watched
from iwopd.training.schedule import Position

if TYPE_CHECKING:
    from iwopd.config import ParityConfig
    from iwopd.data import Prompts
    from iwopd.evaluation.evaluate import Benchmark
    from iwopd.models.student import Student
    from iwopd.rollout.base import Engine, Sampling
    from iwopd.scoring.base import Teacher
    from iwopd.training.objective import Objective
    from iwopd.training.parity import GapWatch
    from iwopd.training.reward import TaskReward


@dataclass
class State(Position):
    """How far a run is; with the student and its optimiser, all a checkpoint needs, since everything random derives
    from (seed, step, prompt, sample).

    Attributes:
        evaluated: the step last evaluated; -1 before the first.
        accuracy: measured then; null until then.
        first_accuracy: measured before the first step.
        log_offsets: bytes of metrics.jsonl and samples.jsonl that belong to these steps.
        micro_batch_tokens: its value after halving; None before it was needed.
        mean_response_length: running mean length of whole responses, tokens, for `rollout.horizon`; None before an
            evaluation. Of regular evaluations: one that is due to the run's end must not change how a lengthened run
            continues.
        watched: how responses ended in the first steps and the last.
    """

    evaluated: int = -1
    accuracy: float | None = None
    first_accuracy: float | None = None
    log_offsets: dict[str, int] = field(default_factory=dict[str, int])
    micro_batch_tokens: int | None = None
    mean_response_length: float | None = None
    watched: Watched = field(default_factory=Watched)

    @classmethod
    def load(cls, file: Path) -> "State":
        """From a checkpoint's trainer.json.

        Raises:
            RunFolderError: it is of another schema than this program's.
        """
        held = json.loads(file.read_text(encoding="utf-8"))
        held = held if isinstance(held, dict) else {}
        schema = held.pop("schema", 1)
        differing = sorted({entry.name for entry in fields(cls)} ^ set(held))
        if schema != SCHEMA or differing:
            more = f" (fields more or fewer: {', '.join(differing)})" if differing else ""
            raise RunFolderError(
                f"{file}: is of schema {schema}{more}, and this iwopd has schema {SCHEMA}; resume the run with the "
                "iwopd that began it, which about.json names, or train from scratch in another folder"
            )
        return cls(**{**held, "watched": Watched(**held["watched"])})

    def save(self, file: Path) -> None:
        """Into a checkpoint's trainer.json."""
        file.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}), encoding="utf-8")


@dataclass(frozen=True)
class Components:
    """What the loop works with.

    Attributes:
        base: the model that ExOPD measures the teacher's gain from; None without it.
        dropped: training prompts left out as too long.
        sampling: the distribution that rollouts are sampled from, and evaluations by `eval_sampling`.
        parity: how engine and trainer are compared after each sync; None where they are not.
        reward: grades rollouts beside the teacher; None without a task's reward.
        gaps: watches the gap between sampler and trainer over the run.
        stop_ids: end-of-sequence ids of the student and of each teacher, by their sections.
    """

    student: "Student"
    teacher: "Teacher"
    base: "Teacher | None"
    engine: "Engine"
    objective: "Objective"
    stream: "Prompts"
    benchmarks: "list[Benchmark]"
    tokenizer: Any
    dropped: int
    sampling: "Sampling"
    eval_sampling: "Sampling"
    parity: "ParityConfig | None"
    gaps: "GapWatch"
    stop_ids: dict[str, tuple[int, ...]]
    reward: "TaskReward | None" = None
