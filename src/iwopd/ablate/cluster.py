"""A study's runs handed to a Hydra launcher: joblib, submitit, ray, or Hydra's own, which takes one after another."""

import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig

from iwopd.ablate.workers import Outcome, train
from iwopd.errors import ConfigError, first_line
from iwopd.machine import host


def launcher_chosen() -> bool:
    """True where the command line or the config names a launcher; without one, the study has workers of its own."""
    hydra = HydraConfig.get()
    named = any(str(item).lstrip("+").startswith("hydra/launcher=") for item in hydra.overrides.hydra)
    return named or not str(hydra.launcher.get("_target_", "")).endswith(".BasicLauncher")


def launch(jobs: Sequence[tuple[Sequence[str], Path]], flags: Sequence[str]) -> list[Outcome]:
    """Carry out jobs (overrides, folder) through the launcher of the config; how each ended.

    Raises:
        ConfigError: the launcher does not start.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "a verb runs within Hydra"
    # What the launcher itself writes; runs have folders of their own. Said here, because the default is the name of a
    # temporary folder that only this process can make up.
    sweep = f"hydra.sweep.dir='{tempfile.mkdtemp()}'"
    try:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callback()),  # pyright: ignore[reportArgumentType]  does nothing
            task_function=partial(job, flags=list(flags), workers=_at_one_time(len(jobs))),
            config=HydraConfig.instance().cfg,  # pyright: ignore[reportArgumentType]  set while a verb runs
        )
        returned = launcher.launch([[*overrides, sweep] for overrides, _ in jobs], initial_job_idx=0)
    except Exception as error:  # each launcher has errors of its own
        name = HydraConfig.get().runtime.choices.get("hydra/launcher")
        raise ConfigError(
            f"hydra/launcher={name}: {first_line(error)}; correct its settings, or leave it out"
        ) from error
    return [_outcome(item) for item in returned]


def _at_one_time(jobs: int) -> int | None:
    """How many jobs the launcher has running on one machine; None where it does not say, such as on a cluster."""
    count = HydraConfig.get().launcher.get("n_jobs")  # joblib's; -1 for all cores
    return None if count is None else min(jobs, count if count > 0 else host.cores())


def job(composed: DictConfig, flags: Sequence[str], workers: int | None = None) -> Outcome:
    """What the launcher carries out, wherever it does: one training run as a process."""
    overrides = list(HydraConfig.get().overrides.task)
    return train([*flags, *overrides], Path(composed.run.dir), workers=workers)


def _outcome(returned: JobReturn) -> Outcome:
    try:
        with redirect_stderr(StringIO()):  # where Hydra announces the error that it raises
            return returned.return_value
    except Exception as error:  # whatever ended the job
        return Outcome(1, first_line(error))
