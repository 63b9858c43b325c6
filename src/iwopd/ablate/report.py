"""study.json, study.md and report.html: the same results for programs, for a README, and for a reader."""

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from iwopd.ablate.arms import Arm, Run
from iwopd.ablate.plots import draw
from iwopd.ablate.records import ACCURACIES, COMPARED, StudyResults, Summary
from iwopd.ablate.results import study_results
from iwopd.ablate.students import by_student
from iwopd.ablate.summary import figure_names, signed, verdicts
from iwopd.config import Config
from iwopd.errors import RunFolderError
from iwopd.redact import cleaned
from iwopd.report.page import figure, folded, listing, page, table
from iwopd.report.page import markdown as text
from iwopd.report.plots import Figure
from iwopd.runs.files import write_whole

Table = tuple[str, list[str], list[list[str]]]  # caption, heads, rows


def report_study(
    config: Config, arms: Sequence[Arm], runs: Sequence[Run], failed: Mapping[str, str], folder: Path
) -> list[str]:
    """`write_report` of a study whose runs have ended."""
    return write_report(study_results(config, arms, runs, failed), folder)


def write_report(results: StudyResults, folder: Path) -> list[str]:
    """Write study.json, study.md, report.html and figures/; lines that tell the outcome.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written to.
    """
    results = cleaned(results)
    try:
        figures = draw(results, folder / "figures")
        write_whole(folder / "study.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_whole(folder / "study.md", markdown(results, figures))
        write_whole(folder / "report.html", html(results, figures))
    except RunFolderError:
        raise
    except OSError as error:  # of the figures
        raise RunFolderError(f"{folder}: the report cannot be written ({error.strerror}); make room") from error
    return [*verdicts(results), f"the study is in {folder}: open report.html"]


def tables(results: StudyResults) -> list[Table]:
    """Figures, differences and costs, as text."""
    return [accuracy_table(results), difference_table(results), cost_table(results)]


def accuracy_table(results: StudyResults) -> Table:
    """Arms by figures, mean ± sd."""
    names = figure_names(results)
    rows = [
        [arm["name"], str(len(arm["seeds"])), *(spread(arm[name]) for name in ACCURACIES)] for arm in results["arms"]
    ]
    caption = (
        f"Accuracy (mean@{results['samples']} on {', '.join(results['benchmarks'])}), mean ± standard deviation over "
        "seeds; area: the mean accuracy over the whole training"
    )
    return caption, ["arm", "seeds", *(names[name] for name in ACCURACIES)], rows


def difference_table(results: StudyResults) -> Table:
    """Arm minus baseline: a row for each figure, with interval, p, p corrected, in how many seeds it was
    ahead, and the verdict."""
    names = figure_names(results)
    rows = [
        [
            f"{item['name']}, {names[figure]}",
            signed(found["difference"]),
            "–" if found["low"] is None else f"{signed(found['low'])} to {signed(found['high'])}",
            *("–" if found[name] is None else f"{found[name]:.3g}" for name in ("p", "p_adjusted")),
            f"{found['ahead']} of {len(found['values'])}",
            found["verdict"],
        ]
        for item in results["comparisons"]
        for figure in COMPARED
        for found in [item[figure]]
        if item["seeds"]
    ]
    heads = ["arm, figure", "difference", "95 % interval", "p", "p corrected", "ahead", "verdict"]
    caption = (
        f"Arm minus {results['baseline']}, paired by seed (bootstrap interval, sign-flip p; corrected for all rows by "
        "step-down max-T)"
    )
    return caption, heads, rows


def cost_table(results: StudyResults) -> Table:
    """Tokens, seconds and memory per run."""
    rows = [
        [
            arm["name"],
            *(spread(arm[name], 0) for name in ("tokens_generated", "tokens_scored", "tokens_trained")),
            spread(arm["seconds"], 1),
            spread(arm["evaluation_seconds"], 1),
            spread(arm["peak_mib"], 0),
        ]
        for arm in results["arms"]
    ]
    heads = ["arm", "generated", "scored", "trained", "seconds", "… evaluating", "peak MiB"]
    caption = (
        "Per run, mean ± standard deviation: response tokens generated, tokens scored (prompts included) and trained "
        "on, seconds of training, peak memory of the GPU, or of the process where there is none"
    )
    return caption, heads, rows


def spread(found: Summary, digits: int = 3) -> str:
    """Mean ± standard deviation."""
    if found["mean"] is None:
        return "–"
    mean = f"{found['mean']:,.{digits}f}"
    return mean if found["sd"] is None else f"{mean} ± {found['sd']:,.{digits}f}"


def facts(results: StudyResults) -> str:
    """What was compared with what, in a sentence or two."""
    length = f"{results['steps']} steps" if results["match"] == "steps" else f"the tokens of {results['baseline']}"
    return (
        f"{len(results['arms'])} arms × {len(results['seeds'])} seeds ({', '.join(map(str, results['seeds']))}), "
        f"{length}, {results['batch_size']} prompts a step; {_students(results)}, teacher "
        f"{results['teacher']}. For a seed, all arms start from the same weights and see the same prompts and sampling "
        "noise."
    )


def _students(results: StudyResults) -> str:
    """One for all seeds, or each with its seeds."""
    found = by_student(dict(zip(results["seeds"], results["students"], strict=True)))
    if len(found) < 2:
        return f"student {results['student']}"
    each = [f"{path} (seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))})" for path, seeds in found.items()]
    return f"students {', '.join(each)}"


def markdown(results: StudyResults, figures: Sequence[Figure]) -> str:
    """study.md."""
    lines = [f"# {text(results['name'])}: weightings compared", "", text(facts(results)), ""]
    lines += [*(f"- {text(sentence)}" for sentence in verdicts(results)), ""]
    for drawn in figures:
        lines += [f"![{drawn.alt}](figures/{drawn.name}.svg)", "", drawn.caption, ""]
    for caption, heads, rows in tables(results):
        if rows:
            lines += [f"{text(caption)}:", "", f"| {' | '.join(map(text, heads))} |", "|---" * len(heads) + "|"]
            lines += [*(f"| {' | '.join(map(text, row))} |" for row in rows), ""]
    command = shlex.join(results["command"]).replace("`", "'")
    lines += [f"Made by `{command}`.", ""]
    return "\n".join(lines)


def html(results: StudyResults, figures: Sequence[Figure]) -> str:
    """report.html."""
    title = f"{results['name']}: weightings compared"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(facts(results))}</p>']
    body += ["<h2>In words</h2>", listing(verdicts(results))]
    headings = {"accuracy": "Accuracy while training", "differences": f"Differences to {results['baseline']}"}
    for drawn in figures:
        body += [f"<h2>{escape(headings[drawn.name])}</h2>", figure(drawn.name, drawn.svg, drawn.alt, drawn.caption)]
    body.append("<h2>The numbers</h2>")
    body += [table(*item) for item in tables(results) if item[2]]
    overrides = [[arm["name"], " ".join(arm["overrides"]) or "–"] for arm in results["arms"]]
    made = f"<p>Made by <code>{escape(shlex.join(results['command']))}</code></p>"
    body.append(folded("how it was made", made + table("What makes each arm", ["arm", "overrides"], overrides)))
    return page(title, body)
