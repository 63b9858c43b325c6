"""What a report knows of a run: plain values, as its folder has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iwopd.report.charts import Line
from iwopd.report.tokens import Column

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        name: unique on the page.
        config: as config.yaml has it.
        overrides: what its command line set, in Hydra's grammar.
        metrics, positions: rows of metrics.jsonl and positions.jsonl.
        columns: evaluations whose responses are shown.
        finished: the final model is there.
    """

    name: str
    config: Mapping[str, Any]
    overrides: Sequence[str]
    metrics: Sequence[Row]
    positions: Sequence[Row] = ()
    columns: Sequence[Column] = ()
    finished: bool = False

    @property
    def steps(self) -> list[Row]:
        """Rows of training steps."""
        return [row for row in self.metrics if "train/loss" in row]

    @property
    def evaluations(self) -> list[Row]:
        """Rows of evaluations."""
        return [row for row in self.metrics if "eval/accuracy" in row]

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return max((row["step"] for row in self.metrics), default=0)

    def setting(self, key: str) -> object:
        """The value of a dotted key; None where there is none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def line(self, key: str, label: str, *, band: bool = False) -> Line | None:
        """A metric over the steps, with its interval; None where no row has it."""
        rows = [row for row in self.metrics if isinstance(row.get(key), int | float)]
        if not rows:
            return None
        x, y = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
        if not band or any(f"{key}_{end}" not in row for row in rows for end in ("low", "high")):
            return Line(label, x, y)
        return Line(label, x, y, *([float(row[f"{key}_{end}"]) for row in rows] for end in ("low", "high")))

    def total(self, key: str) -> float:
        """The sum of a metric over all rows."""
        return math.fsum(row[key] for row in self.metrics if isinstance(row.get(key), int | float))


@dataclass(frozen=True)
class Stage:
    """What one stage of a run took in all: seconds; tokens, None where it counts none; and its most host memory, MiB.
    `rows` is how often it is in the metrics."""

    name: str
    seconds: float
    tokens: float | None
    memory: float | None
    rows: int


TOKENS = {"rollout": "tokens/generated", "score": "tokens/scored", "update": "tokens/trained"}


def stages(run: RunData) -> list[Stage]:
    """Of the whole run, in the order in which they first ended."""
    names = dict.fromkeys(
        key.removeprefix("time/").removesuffix("_s") for row in run.metrics for key in row if key.startswith("time/")
    )
    found = []
    for name in names:
        rows = [row for row in run.metrics if f"time/{name}_s" in row]
        memory = [row[f"memory/{name}_mib"] for row in rows if f"memory/{name}_mib" in row]
        tokens = run.total(TOKENS[name]) if name in TOKENS else None
        found.append(Stage(name, run.total(f"time/{name}_s"), tokens, max(memory, default=None), len(rows)))
    return found
