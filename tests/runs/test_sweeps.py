"""Sweeps of docs/sweeps.md with the plugins that they name; the basic launcher's are in test_run.py."""

from pathlib import Path

import pytest
import yaml
from support.running import SMALL, iwopd, process, rows

pytestmark = pytest.mark.process

ONE_STEP = (
    *SMALL,
    "run.steps=1",
    "eval.every=0",
    "eval.benchmarks.smoke.limit=2",
    "eval.greedy=false",
    "run.samples=0",
)


def test_joblib_runs_jobs_beside_each_other(tmp_path: Path) -> None:
    launcher = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2")
    done = process("train", *ONE_STEP, *launcher, f"run.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for job, seed in (("0", 1), ("1", 2)):
        config = yaml.safe_load((tmp_path / "sweep" / job / "config.yaml").read_text())
        assert config["seed"] == seed
        assert (tmp_path / "sweep" / job / "final" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore")  # of Optuna 2.10, which is older than what it stands on
def test_optuna_searches_gamma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2")
    more = ("hydra.sweeper.n_jobs=1", "hydra.sweep.dir=search", "run.dir=search/gamma-${weighting.gamma}")
    assert iwopd("train", *ONE_STEP, "-m", *sweeper, *more, "weighting.gamma=interval(0,2)") == 0
    found = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    tried = {}
    for file in (tmp_path / "search").glob("gamma-*/*/metrics.jsonl"):
        gamma = yaml.safe_load((file.parent / "config.yaml").read_text())["weighting"]["gamma"]
        tried[gamma] = rows(file)[-1]["eval/accuracy"]
    assert len(tried) == 2
    assert all(0 <= gamma <= 2 for gamma in tried)
    assert found["best_value"] == max(tried.values()) == tried[found["best_params"]["weighting.gamma"]]
