"""report.html: advice first, then figures, each with its numbers."""

from collections.abc import Mapping, Sequence
from html import escape

from iwopd.diagnose.figures import Figure
from iwopd.diagnose.records import BINS, Curve, Diagnosis
from iwopd.report.page import figure, folded, listing, page, table

HEADINGS = {
    "continuation": "Who can still get it right",
    "relative": "Where they disagree, by relative position",
    "absolute": "… and by absolute position",
    "log_ratio": "How far the prefixes drift",
    "weighting": "What each weighting would spend",
    "noise": "Disagreement, or noise",
}
TENTHS = [f"{10 * tenth}–{10 * tenth + 10} %" for tenth in range(BINS)]
PREFIXES = [f"{10 * point} %" for point in range(BINS + 1)]


def report(
    about: Mapping[str, object],
    found: Sequence[Diagnosis],
    advice: Sequence[str],
    notes: Sequence[str],
    figures: Sequence[Figure],
) -> str:
    """The page. `advice` is about the last of the students `found`, `about` what was diagnosed."""
    title = f"Position bias of {about['student']} under {about['teacher']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_facts(about, found))}</p>',
        "<h2>In words</h2>",
        listing([*notes, *advice]),
    ]
    for drawn in figures:
        body.append(f"<h2>{HEADINGS[drawn.name]}</h2>")
        body.append(figure(drawn.name, drawn.svg, drawn.alt, drawn.caption))
        body.append(folded("the numbers", NUMBERS[drawn.name](found)))
    return page(title, body)


def _facts(about: Mapping[str, object], found: Sequence[Diagnosis]) -> str:
    first = found[0]
    students = "" if len(found) == 1 else f"{len(found)} students of {about['run']}; the advice is about the last. "
    kl = f"over {first.kl_over}" if first.full_vocabulary else "of the sampled tokens (the teacher gives no more)"
    return (
        f"{students}{first.rollouts} rollouts of {about['prompts']} prompts, {first.length:.1f} tokens on average, "
        f"{first.truncated:.0%} of them cut by rollout.max_tokens. Nats throughout; reverse KL {kl}; top-k overlap "
        f"with k = {first.top_k}. Training would minimise: {about.get('objective', 'not said')}."
    )


def _positions(found: Sequence[Diagnosis]) -> str:
    rows = [
        [f"{item.name}: {name}", *map(_number, values), _number(item.mean[name])]
        for item in found
        for name, values in item.relative.items()
        if name != "sampler_gap"
    ]
    return table("means per tenth, and over all tokens", ["", *TENTHS, "all"], rows)


def _absolute(found: Sequence[Diagnosis]) -> str:
    last = found[-1]
    names = [name for name in last.absolute if name != "sampler_gap"]
    rows = [
        [str(index * last.width), str(count), *(_number(last.absolute[name][index]) for name in names)]
        for index, count in enumerate(last.counts)
    ]
    return table(f"{last.name}, {last.width} tokens a row", ["from token", "tokens", *names], rows)


def _continuations(found: Sequence[Diagnosis]) -> str:
    rows = []
    for item in found:
        if item.continuation:
            curves = {"teacher": item.continuation.teacher, "student": item.continuation.student}
            rows += [[f"{item.name}: {who}", *_intervals(curve)] for who, curve in curves.items() if curve]
    return table("share of right answers, with its 95 % interval", ["continued by", *PREFIXES], rows)


def _intervals(curve: Curve) -> list[str]:
    parts = zip(curve.accuracy, curve.low, curve.high, strict=True)
    return [f"{accuracy:.2f} [{low:.2f}, {high:.2f}]" for accuracy, low, high in parts]


def _log_ratios(found: Sequence[Diagnosis]) -> str:
    rows = []
    for item in found:
        lines = {"mean": item.log_ratio.mean} | {
            f"quantile {name}": values for name, values in item.log_ratio.quantiles.items()
        }
        rows += [[f"{item.name}: {name}", *(f"{value:.1f}" for value in values)] for name, values in lines.items()]
    return table("nats, after prefixes of", ["", *PREFIXES], rows)


def _weightings(found: Sequence[Diagnosis]) -> str:
    last = found[-1]
    tables = []
    for part, said in (("weight", "share of Σ w"), ("advantage", "share of Σ |w·A|")):
        rows = [
            [name, *(f"{share:.1%}" for share in getattr(item, part)), f"{item.effective_sample_size:.2f}"]
            for name, item in last.weighting.items()
        ]
        heads = ["weighting", *TENTHS, "effective sample size"]
        tables.append(table(f"{said} per tenth; effective sample size (Σw)² / Σw², share of the tokens", heads, rows))
    return "\n".join(tables)


def _noises(found: Sequence[Diagnosis]) -> str:
    last = found[-1]
    gaps, advantages = last.relative["sampler_gap"], last.relative["abs_advantage"]
    rows = [["|trainer − sampler|", *map(_number, gaps)], ["|A|", *map(_number, advantages)]]
    return table("nats per token", ["", *TENTHS], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


NUMBERS = {
    "continuation": _continuations,
    "relative": _positions,
    "absolute": _absolute,
    "log_ratio": _log_ratios,
    "weighting": _weightings,
    "noise": _noises,
}
