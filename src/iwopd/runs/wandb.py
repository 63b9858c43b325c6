"""Weights & Biases as a mirror of the metrics: curves over our own steps, the config, and samples token by token."""

import html
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd.errors import ConfigError
from iwopd.redact import clean, cleaned, printable
from iwopd.runs.files import write_whole

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

GROUPS = ("train", "eval", "sync", "tokens", "time", "memory", "data")
COLUMNS = ("step", "benchmark", "prompt", "response", "answer", "correct", "finish_reason")
PER_TOKEN = ("weights", "advantages", "teacher_logprobs", "sampler_logprobs")


class WandbMirror:
    """See `iwopd.runs.tracking.Mirror`; a resumed run continues in the same wandb run.

    Args:
        config: all settings of the run, as plain values.
        settings: project, entity, group and mode; mode auto is online where there is a login, else offline.

    Raises:
        ConfigError: wandb is not installed, or refuses to start.
    """

    def __init__(self, folder: Path, config: dict[str, Any], settings: Mapping[str, Any], name: str):
        try:
            import wandb
        except ModuleNotFoundError:
            raise ConfigError("tracking=wandb: wandb is not installed; pip install 'iwopd[wandb]'") from None
        self.wandb: Any = wandb
        identity = folder / "wandb_id"
        known = identity.read_text(encoding="utf-8").strip() if identity.exists() else None
        given = {
            "dir": folder,
            "config": cleaned(config),
            "name": name,
            "id": known,
            "resume": "allow" if known else None,
        }
        self.run = self._start({**given, **settings})
        write_whole(identity, self.run.id)
        # Our own step, not wandb's: a resumed run may write a step again, which wandb's counter would refuse.
        self.run.define_metric("step", hidden=True)
        for group in GROUPS:
            self.run.define_metric(f"{group}/*", step_metric="step")

    def _start(self, given: dict[str, Any]) -> "Run":
        auto = given["mode"] == "auto"
        if auto:
            given["mode"], why = ("online", "") if self._logged_in() else ("offline", "nobody is logged in")
            if why:
                return self._start_offline(given, why)
        try:
            return self._init(given)
        except Exception as error:  # network, account and quota errors, each of its own type
            if auto:  # a machine that is paid for should not stop for this
                return self._start_offline(given | {"mode": "offline"}, _reason(error))
            raise _refusal(given, error) from error

    def _start_offline(self, given: dict[str, Any], why: str) -> "Run":
        try:
            run = self._init(given)
        except Exception as error:
            raise _refusal(given, error) from error
        log.info("wandb: offline, as %s; upload it later with: wandb sync %s", why, Path(run.dir).parent)
        return run

    def _init(self, given: dict[str, Any]) -> "Run":
        """wandb keeps the command line; it gets it without secrets."""
        arguments = sys.argv
        sys.argv = [clean(argument) for argument in arguments]
        try:
            return self.wandb.init(**given)
        finally:
            sys.argv = arguments

    def _logged_in(self) -> bool:
        """True where wandb finds a key in the environment, its settings or ~/.netrc; without asking anybody."""
        try:
            return bool(self.wandb.login(prompt=False, verify=False))
        except Exception:  # a key that cannot be one
            return False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Mirror`."""
        self.run.log({"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Mirror`: a table with a row per response, and a page where tokens are shaded by their weights.

        The page is no column of the table: wandb keeps media of tables apart from the run, out of reach of a later sync
        from another machine.
        """
        if not rows:
            return
        table = self.wandb.Table(columns=[*COLUMNS, *PER_TOKEN])
        for row in rows:
            plain = [({"step": step} | dict(row)).get(column) for column in COLUMNS]
            table.add_data(*plain, *(json.dumps(row[column]) for column in PER_TOKEN))
        page = self.wandb.Html("<hr>".join(map(shaded_sample, rows)), inject=False)
        self.run.log({"step": step, "samples": table, "samples_shaded": page})

    def close(self) -> None:
        """See `Mirror`."""
        self.run.finish()

    def abandon(self) -> None:
        """See `Mirror`: wandb would raise anew as the program ends, when its service is gone."""
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # which warns at every write to a lost connection
        with suppress(Exception, SystemExit):
            self.wandb.teardown()


def _refusal(given: Mapping[str, Any], error: Exception) -> ConfigError:
    """Blames the setting that wandb's own words name, else the mode."""
    reason = _reason(error)
    key = next((key for key in ("project", "entity", "group") if re.search(rf"\b{key}\b", reason)), "mode")
    fix = "log in, or set it to offline" if key == "mode" else "correct it, or set tracking.mode=offline"
    return ConfigError(f"tracking.{key}={given[key]}: wandb does not start ({reason}); {fix}")


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def shaded_sample(row: Mapping[str, Any]) -> str:
    """A problem and its response as HTML, each token the darker the larger its weight.

    Advantage and weight show under the pointer.

    Args:
        row: of `iwopd.training.samples.sample_rows`; tokens outside the scheme's window have no weight, and no shade.
    """
    start, weights = row["start"], row["weights"]
    largest = max(weights, default=0.0) or 1.0
    parts = [f"<b>{_escaped(row['prompt'])}</b><br>{'right' if row['correct'] else 'wrong'}: "]
    for place, token in enumerate(row["tokens"]):
        text = _escaped(token)
        if start <= place < start + len(weights):
            weight, advantage = weights[place - start], row["advantages"][place - start]
            shade = f"background:rgba(240,140,0,{max(weight, 0.0) / largest:.2f})"
            text = f'<span style="{shade}" title="weight {weight:.3f}, advantage {advantage:.3f} nats">{text}</span>'
        parts.append(text)
    return f'<div style="font-family:monospace;white-space:pre-wrap">{"".join(parts)}</div>'


def _escaped(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "⏎<br>")
