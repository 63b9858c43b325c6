"""The look of every figure, and how one is kept: PNG and SVG files, and SVG whose ink follows a page's colours."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import figure

matplotlib.use("Agg")
from matplotlib import pyplot

# Of middle brightness, so that they are seen on white and on black.
COLOURS = ("#3b8ed0", "#e07b39", "#3fa66b", "#b86bc9", "#c9a227", "#d0526b", "#5fb3b3", "#8f8f8f")
INK = "#1d2430"  # text and axes; `currentColor` in the page
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "path",  # outlines: the same on a machine without the font
    "svg.hashsalt": "iwopd",  # the same names at every run
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# Nothing of the day or the machine, so that the same numbers give the same file.
NO_METADATA: Any = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Figure:
    """A drawing: `svg` for the page, and what it shows for who cannot see it."""

    name: str
    svg: str
    alt: str
    caption: str


@contextmanager
def style() -> Iterator[None]:
    """Within it, matplotlib draws as all figures here look."""
    with matplotlib.rc_context(STYLE):
        yield


def save(drawn: figure.Figure, folder: Path, name: str, alt: str, caption: str) -> Figure:
    """Write `folder`/NAME.png and .svg of a matplotlib figure, and close it."""
    drawn.savefig(folder / f"{name}.png", facecolor="white", dpi=160)
    (folder / f"{name}.svg").write_text(_titled(_svg(drawn, facecolor="white"), alt), encoding="utf-8")
    inked = _svg(drawn, transparent=True).replace(INK, "currentColor")
    pyplot.close(drawn)
    return Figure(name, inked, alt, caption)


def _svg(drawn: figure.Figure, **options: Any) -> str:  # noqa: ANN401  savefig's
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata=NO_METADATA, **options)
    return text.getvalue()


def _titled(svg: str, alt: str) -> str:
    """The file says what it shows, wherever it is opened."""
    head, _, rest = svg.partition("<svg")
    opening, _, content = rest.partition(">")
    return f'{head}<svg{opening} role="img">\n <title>{escape(alt)}</title>{content}'
