"""The figures of a study: accuracy over the training, and the differences to the baseline with their intervals."""

from pathlib import Path

from matplotlib import figure, pyplot

from iwopd.ablate.records import COMPARED, StudyResults
from iwopd.ablate.summary import figure_names, signed
from iwopd.report.plots import COLOURS, Figure, save, style

MARKERS = "osD^vPX*"


def draw(results: StudyResults, folder: Path) -> list[Figure]:
    """Every figure there are numbers for, also written as `folder`/NAME.png and .svg."""
    folder.mkdir(exist_ok=True)
    figures = []
    with style():
        if any(arm["seeds"] for arm in results["arms"]):
            figures.append(save(*accuracy(results, folder)))
        if any(item["seeds"] for item in results["comparisons"]):
            figures.append(save(*differences(results, folder)))
    return figures


Drawn = tuple[figure.Figure, Path, str, str, str]  # what `save` takes


def accuracy(results: StudyResults, folder: Path) -> Drawn:
    """Fig. 1a of the paper and its training comparison: mean over seeds, with a band of one standard deviation."""
    drawn, axes = pyplot.subplots(figsize=(7, 3.8))
    said = []
    for index, arm in enumerate(results["arms"]):
        curve, colour = arm["curve"], COLOURS[index % len(COLOURS)]
        if not curve["x"]:
            continue
        marker = MARKERS[index % len(MARKERS)] if results["match"] == "steps" else None
        axes.plot(curve["x"], curve["mean"], label=arm["name"], color=colour, marker=marker, markersize=4, linewidth=2)
        sds = [sd for sd in curve["sd"] if sd is not None]
        if len(sds) == len(curve["mean"]):
            low, high = ([m + sign * s for m, s in zip(curve["mean"], sds, strict=True)] for sign in (-1, 1))
            axes.fill_between(curve["x"], low, high, color=colour, alpha=0.2, linewidth=0)
        said.append(f"{arm['name']} from {curve['mean'][0]:.2f} to {curve['mean'][-1]:.2f}")
    unit = "step" if results["match"] == "steps" else "response tokens generated"
    axes.set(xlabel=unit, ylabel=f"accuracy, mean@{results['samples']}", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.margins(x=0.01)
    axes.legend(ncols=1 + len(results["arms"]) // 6)
    seeds = len(results["seeds"])
    caption = (
        f"Accuracy on {', '.join(results['benchmarks'])} while training: the mean over {seeds} seeds"
        f"{', with a band of one standard deviation' if seeds > 1 else ''}."
    )
    return drawn, folder, "accuracy", f"Accuracy over {unit}s, mean of {seeds} seeds: {'; '.join(said)}.", caption


def differences(results: StudyResults, folder: Path) -> Drawn:
    """Each arm minus the baseline at each figure, with its 95 % interval and the single seeds."""
    compared = [item for item in results["comparisons"] if item["seeds"]]
    names = figure_names(results)
    drawn, panels = pyplot.subplots(
        1, len(COMPARED), figsize=(7, 1.1 + 0.42 * len(compared)), sharey=True, squeeze=False
    )
    order = [arm["name"] for arm in results["arms"]]
    for axes, name in zip(panels[0], COMPARED, strict=True):
        axes.axvline(0, color="#8f8f8f", linewidth=1)
        for row, item in enumerate(compared):
            found, colour = item[name], COLOURS[order.index(item["name"]) % len(COLOURS)]
            axes.plot(found["values"], [row] * len(found["values"]), "|", color=colour, markersize=6, alpha=0.6)
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=2)
            axes.plot(found["difference"], row, "o", color=colour, markersize=5)
        axes.set_title(names[name])
        axes.set_yticks(range(len(compared)), [item["name"] for item in compared])
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.margins(x=0.1)
        axes.locator_params(axis="x", nbins=2)
        axes.tick_params(axis="y", length=0)
    said = "; ".join(
        f"{item['name']} " + ", ".join(f"{names[figure]} {signed(item[figure]['difference'])}" for figure in COMPARED)
        for item in compared
    )
    caption = (
        f"Accuracy minus that of {results['baseline']}, paired by seed: the mean (dot), its 95 % bootstrap interval "
        "(line) and the single seeds (ticks). Each panel has its own scale."
    )
    return drawn, folder, "differences", f"Paired differences to {results['baseline']}: {said}.", caption
