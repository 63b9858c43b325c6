"""What a diagnosis leaves: diagnose.json, report.html and figures/."""

import json
from dataclasses import asdict

from iwopd.config import Config, describe_objective
from iwopd.diagnose.advice import advise
from iwopd.diagnose.figures import draw
from iwopd.diagnose.records import Diagnosis
from iwopd.diagnose.report import report
from iwopd.redact import cleaned
from iwopd.runs.console import Display
from iwopd.runs.files import not_written, write_whole
from iwopd.runs.folder import RunFolder


def write(config: Config, folder: RunFolder, found: list[Diagnosis], notes: list[str], display: Display) -> None:
    """Write them, and say what they say."""
    advice = advise(found[-1] if config.diagnose.run else found[0])
    about: dict[str, object] = {
        "student": config.student.path,
        "teacher": config.teacher.path,
        "run": config.diagnose.run,
        "objective": describe_objective(config),
        "prompts": found[0].rollouts // config.rollout.n,
    }
    about, notes, advice = cleaned(about), cleaned(notes), cleaned(advice)
    content = {**about, "notes": notes, "advice": advice, "students": [asdict(item) for item in found]}
    with folder:
        write_whole(folder.path / "diagnose.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        try:
            figures = draw(found, folder.path / "figures")
        except OSError as error:
            raise not_written(folder.path / "figures", error) from error
        write_whole(folder.path / "report.html", report(about, found, advice, notes, figures))
    for sentence in advice:
        display.line(sentence)
    display.line(f"report: {folder.path / 'report.html'}")
