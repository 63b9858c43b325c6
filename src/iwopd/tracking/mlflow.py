"""MLflow as a mirror of the metrics: on a tracking server, or in a file beside the runs."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filelock import FileLock

from iwopd.setting import setting
from iwopd.tracking import samples
from iwopd.tracking.base import ProjectTracking, TrackedRun

PARAMETER = 6000  # characters of a value, MLflow's limit
AT_ONCE = 100  # parameters in one request, likewise


@dataclass(kw_only=True)
class MlflowTracking(ProjectTracking):
    """MLflow."""

    name = package = "mlflow"

    mlflow: bool = setting(False, "also to MLflow")
    uri: str | None = setting(
        None,
        "MLflow's server or store; null for MLFLOW_TRACKING_URI, and without it mlflow.db beside run.dir",
    )

    def problems(self) -> Iterator[str]:
        """See `Tracking`."""
        if not self.project.strip():
            yield f"tracking.project={self.project}: MLflow needs a name for the experiment; give it one"

    def start(self, run: TrackedRun) -> "MlflowMirror":
        """See `Tracking`."""
        return MlflowMirror(self, run)


class MlflowMirror:
    """See `Mirror`; a resumed run continues as the same run, by its id."""

    def __init__(self, settings: MlflowTracking, run: TrackedRun):
        library, entities = settings.library(), settings.library("mlflow.entities")
        self._metric = entities.Metric
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        beside = run.folder.absolute().parent
        uri, artifacts = settings.uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            uri, artifacts = f"sqlite:///{beside / 'mlflow.db'}", (beside / "mlflow-artifacts").as_uri()
        with FileLock(beside / ".mlflow.lock"):  # runs that start together must not make the tables together
            self.client = library.MlflowClient(uri)
            experiment = self._experiment(settings.project, artifacts)
        self.id: str | None = run.known
        if run.known:
            self.client.update_run(run.known, status="RUNNING")
        else:
            tags = {"group": settings.group} if settings.group else {}
            self.id = self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            given = [entities.Param(key, value[:PARAMETER]) for key, value in _parameters(run.config)]
            for first in range(0, len(given), AT_ONCE):
                self.client.log_batch(self.id, params=given[first : first + AT_ONCE])
        self.client.log_dict(self.id, run.config, "config.json")

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name, artifact_location=artifacts)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`."""
        now = int(time.time() * 1000)
        given = [self._metric(_key(key), float(value), now, step) for key, value in metrics.items()]
        self.client.log_batch(self.id, metrics=given)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`: artifacts, a table, a page and a figure for each evaluation."""
        place = f"samples/step-{step:06d}"
        self.client.log_table(self.id, samples.table(step, rows), f"{place}.json")
        self.client.log_text(self.id, samples.page(rows), f"{place}.html")
        image = samples.figure(rows)
        if image is not None:
            self.client.log_image(self.id, image, f"{place}.png")

    def close(self) -> None:
        """See `Mirror`."""
        self.client.set_terminated(self.id)


def _parameters(node: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted keys, in MLflow's letters."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _parameters(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield _key(prefix), str(node)


def _key(text: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]
