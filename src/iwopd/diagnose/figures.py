"""The pictures of a diagnosis."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import figure, pyplot

from iwopd.diagnose.records import BINS, POINTS, Curve, Diagnosis, Values
from iwopd.report.plots import COLOURS, Figure, save, style

TENTHS = [10 * tenth + 5 for tenth in range(BINS)]
PREFIXES = [10 * point for point in range(POINTS)]
QUANTITIES = {
    "abs_advantage": "|A|, nats per token",
    "reverse_kl": "reverse KL, nats per token",
    "entropy": "entropy, nats",
    "overlap": "top-k overlap",
}


def draw(found: Sequence[Diagnosis], folder: Path) -> list[Figure]:
    """Every figure there are numbers for, also written as `folder`/NAME.png and .svg."""
    folder.mkdir(exist_ok=True)
    chosen = [
        drawing for drawing in DRAWINGS if drawing is not continuation or any(item.continuation for item in found)
    ]
    with style():
        drawings = (drawing(found) for drawing in chosen)
        return [save(drawn, folder, name, alt, caption) for drawn, name, alt, caption in drawings]


Drawn = tuple[Any, str, str, str]  # figure, name, alt, caption


def continuation(found: Sequence[Diagnosis]) -> Drawn:
    """Fig. 1b of the paper: accuracy of who continues, over the prefix they are given."""
    drawn, axes = pyplot.subplots(figsize=(7, 3.4))
    measured = [item for item in found if item.continuation]
    single = len(measured) == 1
    for index, item in enumerate(measured):
        assert item.continuation is not None
        curves: dict[str, Curve | None] = {"teacher": item.continuation.teacher, "student": item.continuation.student}
        for line, (who, curve) in zip(("-", "--"), curves.items(), strict=True):
            if curve is None:
                continue
            colour = COLOURS[(who == "student") if single else index % len(COLOURS)]
            label = f"{who} continues" if single else f"{who}, {item.name}"
            axes.plot(PREFIXES, curve.accuracy, line, color=colour, label=label, marker="o", markersize=3)
            if single:
                axes.fill_between(PREFIXES, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.set(
        xlabel="prefix of the student's response that is given, %", ylabel="share of right answers", ylim=(0, 1.03)
    )
    axes.legend(ncols=1 + (len(measured) > 2))
    said = "; ".join(
        f"{item.name}: teacher {_ends(item.continuation.teacher)}, student {_ends(item.continuation.student)}"
        for item in measured
        if item.continuation
    )
    bands = "Bands are 95 % intervals over prompts; differences are judged prompt by prompt." if single else ""
    caption = (
        "Continuation accuracy: teacher and student continue from the student's own prefixes. Where the teacher's "
        "curve has come down to the student's, it can no longer save the response, and what it says of later tokens "
        f"teaches little. {bands}"
    ).rstrip()
    return drawn, "continuation", f"Accuracy from prefixes of 0 to 100 %. {said}.", caption


def _ends(curve: Curve | None) -> str:
    if curve is None:
        return "not measured"
    return ", ".join(f"{curve.accuracy[at]:.2f} at {PREFIXES[at]} %" for at in (0, 3, 10))


def relative(found: Sequence[Diagnosis]) -> Drawn:
    """Each quantity by tenth of the response."""
    drawn = _panels(found, lambda item: (TENTHS, item.relative), "place in the response, %")
    last = found[-1]
    said = ", ".join(f"{value:.2f}" for value in last.relative["abs_advantage"] if value is not None)
    shown = ", ".join(label for name, label in QUANTITIES.items() if name in last.relative)
    alt = f"Panels by tenth of the response: {shown}. |A| of {last.name}: {said}."
    caption = f"By relative position: means over all tokens that lie in a tenth of their response. {_dashed(found)}"
    return drawn, "relative", alt, caption


def absolute(found: Sequence[Diagnosis]) -> Drawn:
    """The same by absolute position."""

    def lines(item: Diagnosis) -> tuple[list[float], dict[str, Values]]:
        places = [(index + 0.5) * item.width for index in range(len(item.counts))]
        return places, item.absolute

    drawn = _panels(found, lines, "position, tokens")
    longest = len(found[-1].counts) * found[-1].width
    alt = f"The same panels by absolute position, up to {longest} tokens."
    caption = (
        f"By absolute position. {_dashed(found)} Far out only the longest responses are left, so the ends are noisy."
    )
    return drawn, "absolute", alt, caption


def _panels(
    found: Sequence[Diagnosis], lines: Callable[[Diagnosis], tuple[Sequence[float], dict[str, Values]]], label: str
) -> figure.Figure:
    names = [name for name in QUANTITIES if name in found[0].relative]
    drawn, grid = pyplot.subplots(-(-len(names) // 2), 2, figsize=(7, 2.2 * -(-len(names) // 2)), squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        for index, item in enumerate(found):
            places, values = lines(item)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(places, _gaps(values[name]), color=colour, label=item.name)
            if name == "entropy":
                axes.plot(places, _gaps(values["teacher_entropy"]), "--", color=colour, label=f"{item.name}: teacher")
        axes.set(title=QUANTITIES[name], xlabel=label)
        axes.set_ylim(bottom=0, top=1.03 if name == "overlap" else None)
        if name == "entropy" and len(found) == 1:
            axes.lines[0].set_label("student")
            axes.lines[1].set_label("teacher")
            axes.legend()
    if len(found) > 1:
        grid.flat[0].legend()
    return drawn


def _dashed(found: Sequence[Diagnosis]) -> str:
    return "The teacher's entropy is dashed." if "teacher_entropy" in found[0].relative else ""


def _gaps(values: Values) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def log_ratio(found: Sequence[Diagnosis]) -> Drawn:
    """The prefix log-ratio: mean and quantiles over rollouts, and examples."""
    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(7, 3))
    for index, item in enumerate(found):
        ratio, colour = item.log_ratio, COLOURS[index % len(COLOURS)]
        left.plot(PREFIXES, ratio.mean, color=colour, label=item.name if len(found) > 1 else "mean")
        if len(found) == 1:
            for low, high, shade in (("0.1", "0.9", 0.15), ("0.25", "0.75", 0.25)):
                band = (ratio.quantiles[low], ratio.quantiles[high])
                left.fill_between(PREFIXES, *band, color=colour, alpha=shade, linewidth=0)
            left.plot(PREFIXES, ratio.quantiles["0.5"], "--", color=colour, label="median")
    left.set(xlabel="prefix of the response, %", ylabel="nats", title="Σ (log π_T − log π_θ) of the prefix")
    left.legend()
    last = found[-1]
    for index, example in enumerate(last.log_ratio.examples):
        values = example["log_ratio"]
        right.plot(range(1, len(values) + 1), values, color=COLOURS[index % len(COLOURS)], linewidth=1.2)
    right.set(xlabel="position, tokens", ylabel="nats", title=f"examples, {last.name}")
    alt = (
        f"The mean prefix log-ratio of {last.name} goes from 0 to {last.log_ratio.mean[-1]:.1f} nats along a response."
    )
    caption = (
        "Prefix log-ratio: how much less likely the teacher finds the student's prefix than the student does. Bands "
        "hold 50 % and 80 % of the rollouts. A steep fall is a token the teacher would not have written."
    )
    return drawn, "log_ratio", alt, caption


def weighting(found: Sequence[Diagnosis]) -> Drawn:
    """Which tenth each scheme spends its weight on."""
    last = found[-1]
    names = list(last.weighting)[::-1]
    drawn, panels = pyplot.subplots(1, 2, figsize=(7, 0.8 + 0.28 * len(names)), sharey=True)
    shades = matplotlib.colormaps["viridis"]
    for axes, part, title in zip(panels, ("weight", "advantage"), ("share of Σ w", "share of Σ |w·A|"), strict=True):
        left = [0.0] * len(names)
        for tenth in range(BINS):
            widths = [getattr(last.weighting[name], part)[tenth] for name in names]
            axes.barh(names, widths, left=left, color=shades(0.1 + 0.85 * tenth / (BINS - 1)), height=0.75)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set(title=title, xlim=(0, 1))
        axes.tick_params(axis="y", length=0)
    early = {name: sum(item.weight[:3]) for name, item in last.weighting.items()}
    said = ", ".join(f"{name} {share:.0%}" for name, share in early.items())
    caption = (
        f"What each scheme spends on each tenth of a response, first tenth dark, last one bright ({last.name}; "
        "annealed schemes as at their first step)."
    )
    return drawn, "weighting", f"Bars per weighting scheme. Weight spent on the first 30 %: {said}.", caption


def noise(found: Sequence[Diagnosis]) -> Drawn:
    """Disagreement of the models against that of sampler and trainer."""
    drawn, axes = pyplot.subplots(figsize=(7, 2.6))
    last = found[-1]
    axes.plot(TENTHS, _gaps(last.relative["abs_advantage"]), color=COLOURS[0], label="|A|")
    gaps = [value or None for value in last.relative["sampler_gap"]]  # 0 has no place on a logarithmic axis
    axes.plot(TENTHS, _gaps(gaps), color=COLOURS[1], label="|trainer − sampler|")
    axes.set(xlabel="place in the response, %", ylabel="nats per token", yscale="log")
    axes.legend()
    alt = (
        f"On a logarithmic scale, |A| at {last.mean['abs_advantage']:.2g} nats per token and the gap of trainer and "
        f"sampler at {last.mean['sampler_gap']:.2g}."
    )
    caption = "Disagreement or noise: what of |A| would be there if student and teacher were one model."
    return drawn, "noise", alt, caption


DRAWINGS: tuple[Callable[[Sequence[Diagnosis]], Drawn], ...] = (
    continuation,
    relative,
    absolute,
    log_ratio,
    weighting,
    noise,
)
