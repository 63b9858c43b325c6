"""A study in words: which differences are larger than the noise, which are not, and what that can be worth."""

from collections.abc import Mapping
from typing import Any

from iwopd.study.results import COMPARED, ENOUGH_SEEDS


def figure_names(results: Mapping[str, Any]) -> dict[str, str]:
    """What the figures are called in tables."""
    early = f"step {results['early_step']}"
    return {
        "before": "before",
        "early": early if results["match"] == "steps" else f"tokens of {results['baseline']}'s {early}",
        "best": "best",
        "final": "final",
        "auc": "area",
    }


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """One sentence for each arm, one about the p-values, and one for what is missing."""
    sentences = [_verdict(item, figure_names(results)) for item in results["comparisons"]]
    tested = sum(len(COMPARED) for item in results["comparisons"] if item["seeds"])
    counts = {len(item["seeds"]) for item in results["comparisons"] if item["seeds"]}
    if counts:
        sentences.append(_honesty(min(counts), tested))
    sentences += [f"{name} failed and is not counted: {reason}" for name, reason in results["failed"].items()]
    return sentences


def _verdict(item: Mapping[str, Any], names: Mapping[str, str]) -> str:
    pair = f"{item['name']} against {item['baseline']}"
    if not item["seeds"]:
        return f"{pair}: no seed has both, so there is nothing to compare."
    said = {
        verdict: ", ".join(
            f"{names[figure]} ({signed(item[figure]['difference'])})"
            for figure in COMPARED
            if item[figure]["verdict"] == verdict
        )
        for verdict in ("larger than the noise", "not told apart", "too few seeds")
    }
    parts = []
    if said["larger than the noise"]:
        parts.append(f"larger than the noise at {said['larger than the noise']}")
    if said["not told apart"]:
        parts.append(f"not to be told from the noise at {said['not told apart']}")
    if said["too few seeds"]:
        count = len(item["seeds"])
        parts.append(f"{count} seed{'s are' if count > 1 else ' is'} too few to tell: {said['too few seeds']}")
    return f"{pair}: {'; '.join(parts)}."


def _honesty(seeds: int, tested: int) -> str:
    smallest = min(1.0, 2.0 / 2.0**seeds)
    base = (
        f"With {seeds} seed{'s' if seeds > 1 else ''} the smallest two-sided p-value of an exact sign-flip test is "
        f"{'2/2' + _superscript(seeds) + ' = ' if seeds > 1 else ''}{smallest:.4g}"
    )
    if seeds < ENOUGH_SEEDS:
        return f"{base}: no difference can be called larger than the noise with fewer than {ENOUGH_SEEDS} seeds."
    above = (
        ", so none can lie below 0.05 (6 seeds could): larger than the noise here means that every seed agrees and "
        "that the 95 % interval leaves out 0"
        if smallest > 0.05
        else ": larger than the noise means p ≤ 0.05 and a 95 % interval that leaves out 0"
    )
    return (
        f"{base}{above}. {tested} differences were looked at and their p-values are not corrected for that; the seeds "
        "vary prompts and sampling, not the pair of models."
    )


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; a minus is a minus."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
