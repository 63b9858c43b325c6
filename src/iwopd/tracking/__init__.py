"""Where metrics go besides metrics.jsonl. A tracker is one file here and one base of `TrackingConfig`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from iwopd.tracking.base import Tracking, section
from iwopd.tracking.mlflow import MlflowTracking
from iwopd.tracking.tensorboard import TensorboardTracking
from iwopd.tracking.trackio import TrackioTracking
from iwopd.tracking.wandb import WandbTracking


@dataclass(kw_only=True)
class TrackingConfig(WandbTracking, TensorboardTracking, MlflowTracking, TrackioTracking):
    """Where metrics go besides metrics.jsonl: `tracking=NAME`, or several, `tracking=[NAME,…]`. Settings that trackers
    share are set once."""


TRACKERS: dict[str, type[Tracking]] = {kind.name: kind for kind in TrackingConfig.__bases__}


def chosen(config: TrackingConfig) -> list[Tracking]:
    """Those that are on, each with its settings."""
    return [section(config, kind) for name, kind in TRACKERS.items() if getattr(config, name)]


def problems(config: TrackingConfig) -> Iterator[str]:
    """One line each, with key, value, reason and fix."""
    on = chosen(config)
    for tracker in on:
        yield from tracker.problems()
    known = {entry.name for tracker in on for entry in fields(tracker)} | {*TRACKERS}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name not in known and value != entry.default:
            owners = [f"tracking={name}" for name, kind in TRACKERS.items() if entry.name in kind.__dataclass_fields__]
            yield f"tracking.{entry.name}={value}: no such key; choose {' or '.join(owners)}, which has it"
