"""Tables and figures of docs/studies/which-way.md, from the studies' study.json and the diagnoses' diagnose.json.

    python scripts/which_way.py runs/which_way > tables.md             # or of some pairs: … same_size late_errors

The folder holds one study per pair and loss, called PAIR-LOSS, and diagnose/PAIR-N, one for each student of the pair.
Differences are judged here as one family: sign flips of whole seeds in all studies together (step-down max-T). A study
that lacks runs is shown and not judged. The figures go to docs/studies/.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from iwopd.ablate.records import COMPARED
from iwopd.ablate.summary import signed
from iwopd.report.paired import LEVEL, adjusted_pvalues, bootstrap_interval, sign_flip_pvalue
from iwopd.report.plots import COLOURS, INK, pyplot, save, style

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "studies"
PAIRS = ("same_size", "late_errors", "cross_scale", "self", "plan_errors", "execution_errors", "mixed_errors")
FIXED = PAIRS[:2]  # the pairs the rule was made on
LOSSES = ("policy_gradient", "reverse_kl")
SEEDS = 8
BAND = 0.2  # of the lean: useful disagreement of the windows within a factor of 1.5 says no direction
CONTRASTS = {"iw − iw_reversed": ("iw", "iw_reversed"), "first30 − last30": ("first30", "last30")}
BESIDE: Any = {"textcoords": "offset points", "fontsize": 7, "rotation": 90, "ha": "center"}
Study = dict[str, Any]
Key = tuple[str, str]  # pair, loss


def read(folder: Path) -> dict[Key, Study]:
    """Every study with at least two seeds, in the order of PAIRS; its arms by name, its comparisons by arm."""
    found = dict[Key, Study]()
    for loss in LOSSES:
        for pair in PAIRS:
            file = folder / f"{pair}-{loss}" / "study.json"
            study = json.loads(file.read_text("utf-8")) if file.exists() else {"comparisons": []}
            compared = {item["name"]: item for item in study["comparisons"] if len(item["seeds"]) > 1}
            if compared:
                arms = {arm["name"]: arm for arm in study["arms"]}
                found[pair, loss] = {**study, "arms": arms, "comparisons": compared}
    return found


def whole(study: Study) -> bool:
    """True where every arm has all seeds."""
    return all(len(item["seeds"]) == SEEDS for item in study["comparisons"].values())


def judged(studies: dict[Key, Study]) -> dict[tuple[str, str, str, str], float]:
    """p of each pair, loss, arm and figure, corrected for all of them."""
    looks = {
        (pair, loss, arm, figure): item[figure]["values"]
        for (pair, loss), study in studies.items()
        if whole(study)
        for arm, item in study["comparisons"].items()
        for figure in COMPARED
    }
    return dict(zip(looks, adjusted_pvalues(list(looks.values())), strict=True))


def arm_table(studies: dict[Key, Study], p: dict[tuple[str, str, str, str], float], loss: str, figure: str) -> str:
    """Arms by pairs: uniform's accuracy, and what the others are above it, bold where that is beyond the noise."""
    columns = [pair for pair, other in studies if other == loss]
    arms = list(dict.fromkeys(arm for pair in columns for arm in studies[pair, loss]["arms"]))
    lines = [
        "| arm | " + " | ".join(pair.replace("_", " ") for pair in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for arm in arms:
        cells = []
        for pair in columns:
            study = studies[pair, loss]
            if arm in study["comparisons"]:
                found = study["comparisons"][arm][figure]
                cells.append(cell(found, p.get((pair, loss, arm, figure))))
            elif arm == study["baseline"]:
                own = study["arms"][arm]
                before = f"{own['before']['mean']:.3f} → " if figure == "final" else ""
                cells.append(f"{before}{own[figure]['mean']:.3f}")
            else:
                cells.append("")
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: dict[str, Any], p: float | None) -> str:
    """A difference with its interval; bold where p ≤ 0.05, with the count of seeds where that is not 8."""
    mean = signed(found["difference"])
    count = len(found["values"])
    few = "" if count == SEEDS else f", {count} seeds"
    interval = "" if found["low"] is None else f" [{signed(found['low'])}, {signed(found['high'])}{few}]"
    return (f"**{mean}**" if p is not None and p <= LEVEL else mean) + interval


def draw_differences(studies: dict[Key, Study], p: dict[tuple[str, str, str, str], float], folder: Path) -> None:
    """Every arm's final accuracy minus uniform's, a panel per pair; filled where that is beyond the noise."""
    arms = list(dict.fromkeys(arm for study in studies.values() for arm in study["comparisons"]))
    drawn, panels = pyplot.subplots(2, 4, figsize=(9, 5), sharex=True, sharey=True)
    for axes, pair in zip(panels.flat, PAIRS, strict=False):
        axes.axvline(0, color="#8f8f8f", linewidth=1)
        for place, loss in enumerate(LOSSES):
            for row, arm in enumerate(arms):
                found = studies.get((pair, loss), {}).get("comparisons", {}).get(arm)
                if found is None:
                    continue
                values, y, colour = found["final"], row + 0.3 * place - 0.15, COLOURS[place]
                if values["low"] is not None:
                    axes.plot([values["low"], values["high"]], [y, y], color=colour, linewidth=1.5)
                sure = p.get((pair, loss, arm, "final"), 1.0) <= LEVEL
                axes.plot(values["difference"], y, "o", color=colour, markersize=5, mfc=colour if sure else "white")
        axes.set_title(pair.replace("_", " "))
        axes.set_xscale("symlog", linthresh=0.02, linscale=1.5)
        axes.set_xticks([-0.5, -0.02, 0, 0.02], ["−0.5", "−0.02", "0", "0.02"])
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7, labelbottom=True)
        axes.minorticks_off()
    for place, loss in enumerate(LOSSES):
        panels.flat[-1].plot([], [], "o-", color=COLOURS[place], label=loss)
    panels.flat[-1].legend(loc="center")
    panels.flat[-1].set_axis_off()
    keep(drawn, folder, "which_way_differences", "Final accuracy minus uniform, arm by arm on each pair")


def draw_rule(found: dict[str, dict[str, float]], studies: dict[Key, Study], folder: Path) -> None:
    """What diagnose says before training against what training gave: pairs as points."""
    drawn, panels = pyplot.subplots(1, len(CONTRASTS), figsize=(8, 3.2))
    for axes, (name, (first, last)) in zip(panels, CONTRASTS.items(), strict=True):
        axes.axvline(0, color="#8f8f8f", linewidth=1), axes.axhline(0, color="#8f8f8f", linewidth=1)
        for (pair, loss), study in studies.items():
            values = contrast(study, first, last, "final")
            if pair in found and len(values) > 1:
                x, colour = lean(found[pair]), COLOURS[LOSSES.index(loss)]
                low, high = bootstrap_interval(values)
                axes.plot([x, x], [low, high], color=colour, linewidth=1.5)
                axes.plot(x, fmean(values), "s" if pair in FIXED else "o", color=colour, markersize=5)
                if (pair, LOSSES[-1]) not in studies or loss == LOSSES[-1]:
                    axes.annotate(pair.replace("_", " "), (x, high), (0, 4), **BESIDE)
        axes.margins(y=0.3)
        axes.set(title=name, xlabel="lean, before training", ylabel="difference of final accuracy")
    for place, loss in enumerate(LOSSES):
        panels[0].plot([], [], "s-", color=COLOURS[place], label=loss)
    panels[0].plot([], [], "o", color=INK, label="pairs it was not fixed on", mfc="white")
    panels[0].legend(loc="upper left", fontsize=7)
    keep(drawn, folder, "which_way_rule", "What diagnose says before training, against which arm ended higher")


def keep(drawn: Any, folder: Path, name: str, alt: str) -> None:
    """As SVG alone."""
    save(drawn, folder, name, alt, "")
    (folder / f"{name}.png").unlink()


def contrast(study: Study, first: str, last: str, figure: str) -> list[float]:
    """First minus last, seed by seed, over the seeds that both have."""
    ours, theirs = (
        dict(zip(a["seeds"], a[figure]["values"], strict=True)) for a in (study["arms"][first], study["arms"][last])
    )
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def diagnosed(folder: Path, pair: str) -> dict[str, float]:
    """What `iwopd diagnose` says of a pair before training, the mean over its students.

    teacher_N and student_N are the continuation accuracies from N % of the student's response; size_first and size_last
    the shares of |A| in the first and last 30 %; useful_first and useful_last the disagreement there that a teacher can
    still turn into right answers: each tenth's share of |A| times the teacher's head start over the student in it.
    """
    files = sorted((folder / "diagnose").glob(f"{pair}-[0-9]/diagnose.json"))
    students = [json.loads(file.read_text("utf-8"))["students"][0] for file in files]
    parts = [_diagnosed(student) for student in students]
    means = {name: fmean(part[name] for part in parts) for name in (parts[0] if parts else ())}
    return {**means, "students": len(parts)} if parts else {}


def _diagnosed(student: dict[str, Any]) -> dict[str, float]:
    teacher, own = (student["continuation"][who]["accuracy"] for who in ("teacher", "student"))
    size, ahead = student["share"]["abs_advantage"], [a - b for a, b in zip(teacher, own, strict=True)]
    useful = [size[tenth] * (ahead[tenth] + ahead[tenth + 1]) / 2 for tenth in range(len(size))]
    return {
        **{f"teacher_{tenth * 10}": teacher[tenth] for tenth in (0, 3, 7, 10)},
        **{f"student_{tenth * 10}": own[tenth] for tenth in (0, 3, 7, 10)},
        "size_first": sum(size[:3]),
        "size_last": sum(size[7:]),
        "useful_first": sum(useful[:3]),
        "useful_last": sum(useful[7:]),
    }


def lean(found: dict[str, float]) -> float:
    """From −1, all useful disagreement of both windows in the last 30 %, to 1, all of it in the first."""
    first, last = (max(0.0, found[f"useful_{place}"]) for place in ("first", "last"))
    return (first - last) / (first + last) if first + last else 0.0


def predicted(found: dict[str, float]) -> str:
    """The rule: which way the weights should slope on a pair."""
    value = lean(found)
    return "falling" if value > BAND else "rising" if value < -BAND else "flat"


def rule_table(found: dict[str, dict[str, float]], studies: dict[Key, Study]) -> str:
    """What diagnose says of each pair, the rule's prediction, and what the arms that differ in direction gave."""
    heads = ["pair", "teacher right from 0, 30, 70, 100 %", "useful, first and last 30 %", "lean", "predicted", "loss"]
    lines = ["| " + " | ".join([*heads, *CONTRASTS]) + " |", "|---" * (len(heads) + len(CONTRASTS)) + "|"]
    for pair, loss in ((pair, loss) for pair in found for loss in LOSSES if (pair, loss) in studies):
        own = found[pair]
        right = ", ".join(f"{own[f'teacher_{at}']:.2f}" for at in (0, 30, 70, 100))
        useful = f"{own['useful_first']:.3f}, {own['useful_last']:.3f}"
        cells = [pair.replace("_", " "), right, useful, signed(lean(own), 2), predicted(own), loss]
        for first, last in CONTRASTS.values():
            values = contrast(studies[pair, loss], first, last, "final")
            p = sign_flip_pvalue(values) if values else None
            cells.append(f"{signed(fmean(values))}, p = {p:.2g}, {len(values)} seeds" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(folder: Path, pairs: Sequence[str] = PAIRS) -> None:
    """Print the tables and draw the figures."""
    studies = {key: study for key, study in read(folder).items() if key[0] in pairs}
    p = judged(studies)
    print(f"{len(p)} looks in {len({key[:2] for key in p})} studies\n")
    for loss in LOSSES:
        for figure in ("final", "auc"):
            print(f"{loss}, {figure}\n\n{arm_table(studies, p, loss, figure)}\n")
    found = {pair: said for pair in pairs if (said := diagnosed(folder, pair))}
    print(rule_table(found, studies))
    with style():
        draw_differences(studies, p, FIGURES)
        draw_rule(found, studies, FIGURES)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or PAIRS)
