"""`iwopd doctor`: would this run work here, or on the card that is to be rented? And what would it cost?"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iwopd.config import Config
from iwopd.doctor import environment
from iwopd.doctor.examination import Examination
from iwopd.doctor.findings import Report
from iwopd.doctor.render import conclude, console, show
from iwopd.errors import ConfigError
from iwopd.runs.console import Display

if TYPE_CHECKING:
    pass


def run(config: Config) -> None:
    """Check everything that can be checked, and print what was found; exit status 1 where the run would not work.

    Nothing is written but `doctor.json`, where it is asked for.

    Raises:
        ConfigError: `doctor.json` cannot be written.
    """
    environment.check_json(config)
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
