"""A study in words: which differences are larger than the noise, which are not, and what that can be worth."""

from collections.abc import Mapping

from iwopd.ablate.records import COMPARED, Comparison, StudyResults
from iwopd.report.paired import EXACT_LIMIT, LEVEL, smallest_pvalue, units_needed


def figure_names(results: StudyResults) -> dict[str, str]:
    """What the figures are called in tables."""
    early = f"step {results['early_step']}"
    return {
        "before": "before",
        "early": early if results["match"] == "steps" else f"tokens of about {results['baseline']}'s {early}",
        "best": "best",
        "final": "final",
        "auc": "area",
    }


def verdicts(results: StudyResults) -> list[str]:
    """One sentence for each arm, one about the criterion, and one for what is missing."""
    sentences = [_verdict(item, figure_names(results)) for item in results["comparisons"]]
    tested = sum(len(COMPARED) for item in results["comparisons"] if item["seeds"])
    counts = {len(item["seeds"]) for item in results["comparisons"] if item["seeds"]}
    if counts:
        sentences.append(_criterion(min(counts), tested, len(set(results["students"]))))
    sentences += [f"{name} failed and is not counted: {reason}" for name, reason in results["failed"].items()]
    return sentences


def _verdict(item: Comparison, names: Mapping[str, str]) -> str:
    pair = f"{item['name']} against {item['baseline']}"
    if not item["seeds"]:
        return f"{pair}: no seed has both, so there is nothing to compare."
    said = {
        verdict: ", ".join(
            f"{names[figure]} ({signed(item[figure]['difference'])})"
            for figure in COMPARED
            if item[figure]["verdict"] == verdict
        )
        for verdict in ("larger than the noise", "inconclusive", "too few seeds")
    }
    parts = []
    if said["larger than the noise"]:
        parts.append(f"larger than the noise at {said['larger than the noise']}")
    if said["inconclusive"]:
        parts.append(f"inconclusive at {said['inconclusive']}")
    if said["too few seeds"]:
        count = len(item["seeds"])
        parts.append(f"{count} seed{'s are' if count > 1 else ' is'} too few to tell: {said['too few seeds']}")
    return f"{pair}: {'; '.join(parts)}."


def _criterion(seeds: int, tested: int, students: int) -> str:
    """What "larger than the noise" means in this study, and whether anything can be."""
    formula = f"2/2{_superscript(seeds)} = " if 1 < seeds <= EXACT_LIMIT else ""
    smallest = f"the smallest p-value that {seeds} seed{'s' if seeds > 1 else ''} can give is {formula}"
    said = (
        f"Larger than the noise means p ≤ {LEVEL:g} after correction for all {tested} differences of this study (sign "
        "flips of whole seeds, step-down max-T), so that chance alone calls anything that in at most 1 of 20 studies; "
        f"{smallest}{smallest_pvalue(seeds):.3g}, corrected or not"
    )
    if seeds < units_needed():
        return (
            f"{said}: nothing can be called larger than the noise. {units_needed()} seeds are the fewest that can, "
            "then for differences of four times their standard deviation over seeds; 8 for twice that deviation "
            "(ablate.seeds=8)."
        )
    varied = f"prompts, sampling and the student ({students} of them), not the teacher"
    if students < 2:
        varied = "prompts and sampling, not the pair of models"
    return f"{said}. The 95 % intervals are not corrected. The seeds vary {varied}."


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; a minus is a minus."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}".replace("-", "−")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
