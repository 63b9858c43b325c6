"""`iwopd doctor`: would this run work here, or on the card that is to be rented? And what would it cost?"""

import json
import sys
from pathlib import Path

from iwopd.config import Config
from iwopd.doctor.findings import Report
from iwopd.doctor.render import conclude, console, show
from iwopd.errors import ConfigError
from iwopd.runs.console import Display


def run(config: Config) -> None:
    """Check everything that can be checked, and print what was found; exit status 1 where the run would not work.

    Nothing is written but `doctor.json`, where it is asked for.

    Raises:
        ConfigError: `doctor.json` cannot be written.
    """
    _check_json(config)
    from iwopd.doctor.examination import Examination  # torch takes 5 s

    out, report = console(), Report()
    with Display(out) as display:
        examination = Examination(config, report, display)
        for check in (
            examination.surroundings,
            examination.models,
            examination.data,
            examination.plan,
            examination.live,
        ):
            done = len(report.sections)
            with display.stage(f"checking: {check.__name__}"):
                check()
            for section in report.sections[done:]:
                show(section, out)
    conclude(report, out)
    if config.doctor.json is not None:
        try:
            Path(config.doctor.json).write_text(json.dumps(report.plain(), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(
                f"doctor.json={config.doctor.json}: cannot be written ({error.strerror}); name another file"
            ) from error
    if not report.works:
        sys.exit(1)


def _check_json(config: Config) -> None:
    """Refuse a `doctor.json` that cannot be written, before anything is computed.

    Raises:
        ConfigError: says why.
    """
    if config.doctor.json is None:
        return
    file = Path(config.doctor.json)
    if file.is_dir() or not file.parent.is_dir():
        reason = "is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise ConfigError(f"doctor.json={config.doctor.json}: {reason}; name a file in a folder that exists")
