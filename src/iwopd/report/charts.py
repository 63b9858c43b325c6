"""Line charts as inline SVG: small, with a title and a description for who cannot see them, in the page's colours.

Lines differ by colour (chosen for colour-blind readers, see run.css) and by dashes; where there are more
points than one can distinguish, they are averaged, which the page says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 250  # of the viewBox; text of 13 units is of about that many pixels on a page
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 12, 42
POINTS = 300  # of a line, at most
ROWS = 24  # of a table, at most
COLOURS = 6

Numbers = Sequence[float]


@dataclass(frozen=True)
class Line:
    """One line: its points, and a band around it where there is one."""

    label: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
        name: unique on the page.
        x_label, y_label: with their units.
        y_from, y_to: ends of the vertical axis; None for what the points need.
        log: a logarithmic vertical axis; points of 0 or below are left out.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    caption: str = ""
    y_from: float | None = None
    y_to: float | None = None
    log: bool = False


def drawn(chart: Chart) -> str:
    """The chart as a figure: title, legend, drawing, caption and its numbers; empty without a finite point."""
    lines = [cleared for line in chart.lines if (cleared := _cleared(line, positive=chart.log)).x]
    if not lines:
        return ""
    shown = [thinned(line, POINTS) for line in lines]
    each = max(len(line.x) / len(short.x) for line, short in zip(lines, shown, strict=True))
    caption = chart.caption + (f" A point is the mean of {math.ceil(each)} steps." if each > 1 else "")
    caption = f"<figcaption>{escape(caption.strip())}</figcaption>" if caption else ""
    return (
        f'<figure class="chart" id="{escape(chart.name)}">\n<h3>{escape(chart.title)}</h3>\n{_legend(shown)}\n'
        f"{_svg(chart, shown)}\n{caption}{_numbers(chart, lines)}\n</figure>"
    )


def thinned(line: Line, most: int) -> Line:
    """The means of groups of neighbouring points, so that there are at most `most`."""
    size = math.ceil(len(line.x) / most)
    if size <= 1:
        return line

    def means(values: Numbers | None) -> list[float] | None:
        if values is None:
            return None
        groups = [values[start : start + size] for start in range(0, len(values), size)]
        return [math.fsum(group) / len(group) for group in groups]

    return Line(line.label, means(line.x) or [], means(line.y) or [], means(line.low), means(line.high))


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about as many as wanted: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= wanted)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short, for an axis or a table."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1e6 or abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else f"{value:,.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def count(value: float) -> str:
    """A number of things in words of a few characters: 12.3 M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,.0f}"


def _cleared(line: Line, *, positive: bool) -> Line:
    """Without points that are not finite, or that a logarithm has no place for."""
    kept = [i for i, y in enumerate(line.y) if math.isfinite(y) and (y > 0 or not positive)]

    def of(values: Numbers | None) -> list[float] | None:
        return None if values is None else [values[i] for i in kept]

    return Line(line.label, of(line.x) or [], of(line.y) or [], of(line.low), of(line.high))


@dataclass(frozen=True)
class _Axes:
    """Where numbers lie in the viewBox."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def across(self, value: float) -> float:
        low, high = self.x
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    def up(self, value: float) -> float:
        low, high = self.y
        value = math.log10(value) if self.log else value
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    def y_ticks(self) -> list[float]:
        if not self.log:
            return ticks(*self.y)
        low, high = self.y
        step = max(1, math.ceil((high - low) / 6))
        return [10.0**power for power in range(math.ceil(low), math.floor(high) + 1, step)]


def _axes(chart: Chart, lines: Sequence[Line]) -> _Axes:
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for values in (line.y, line.low, line.high) if values is not None for y in values]
    if chart.log:
        low, high = math.floor(math.log10(min(y for y in ys if y > 0))), math.ceil(math.log10(max(ys)))
        return _Axes(_apart(min(xs), max(xs)), (low, high if high > low else low + 1), True)
    low = min(ys) if chart.y_from is None else chart.y_from
    high = max(ys) if chart.y_to is None else chart.y_to
    low, high = _apart(low, high)
    room = 0.04 * (high - low)
    return _Axes(
        _apart(min(xs), max(xs)),
        (low if chart.y_from is not None else low - room, high if chart.y_to is not None else high + room),
        False,
    )


def _apart(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ, where there is one value alone."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _svg(chart: Chart, lines: Sequence[Line]) -> str:
    axes, name = _axes(chart, lines), escape(chart.name)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(chart.title)}</title>',
        f'<desc id="{name}-desc">{escape(described(chart, lines))}</desc>',
        *_grid(chart, axes),
    ]
    for index, line in enumerate(lines):
        parts += _drawn_line(line, index, axes)
    return "\n".join([*parts, "</svg>"])


def _grid(chart: Chart, axes: _Axes) -> list[str]:
    bottom, right, parts = HEIGHT - BOTTOM, WIDTH - RIGHT, list[str]()
    for value in axes.y_ticks():
        at = axes.up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{number(value)}</text>')
    for value in ticks(*axes.x):
        at = axes.across(value)
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(chart.x_label)}</text>')
    turned = f'transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(chart.y_label)}</text>')
    return parts


def _drawn_line(line: Line, index: int, axes: _Axes) -> list[str]:
    look, parts = f"c{index % COLOURS} d{index % 4}", list[str]()
    if line.low is not None and line.high is not None:
        corners = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
        points = " ".join(f"{axes.across(x)},{axes.up(y)}" for x, y in corners)
        parts.append(f'<polygon class="band {look}" points="{points}"/>')
    points = " ".join(f"{axes.across(x)},{axes.up(y)}" for x, y in zip(line.x, line.y, strict=True))
    parts.append(f'<polyline class="line {look}" points="{points}"/>')
    if len(line.x) <= 30:
        dots = zip(line.x, line.y, strict=True)
        parts += [f'<circle class="dot {look}" cx="{axes.across(x)}" cy="{axes.up(y)}" r="2.5"/>' for x, y in dots]
    return parts


def described(chart: Chart, lines: Sequence[Line]) -> str:
    """What the drawing shows, in words."""
    said = [
        f"{line.label}: from {number(line.y[0])} to {number(line.y[-1])}, lowest {number(min(line.y))}, highest "
        f"{number(max(line.y))}"
        for line in lines
    ]
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    return f"{chart.y_label} over {chart.x_label} {number(first)} to {number(last)}. {'; '.join(said)}."


def _legend(lines: Sequence[Line]) -> str:
    items = [
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="line c{index % COLOURS} d{index % 4}" '
        f'd="M1 4h26"/></svg>{escape(line.label)}</li>'
        for index, line in enumerate(lines)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _numbers(chart: Chart, lines: Sequence[Line]) -> str:
    """A table that opens on a click: a row for each point of a thinned line, or each of several."""
    rows, banded = list[str](), any(line.low is not None for line in lines)
    for line in (thinned(each, ROWS) for each in lines):
        for place, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            cells = [number(x), number(y)]
            if banded:
                band = "–"
                if line.low is not None and line.high is not None:
                    band = f"{number(line.low[place])} to {number(line.high[place])}"
                cells.append(band)
            rows.append(
                f'<tr><th scope="row">{escape(line.label)}</th>'
                + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
                + "</tr>"
            )
    heads = ["line", chart.x_label, chart.y_label, *(["95 % interval"] if banded else [])]
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    return (
        f'<details><summary>the numbers</summary><div class="scroll" tabindex="0" role="region" aria-label="numbers: '
        f'{escape(chart.title)}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )
