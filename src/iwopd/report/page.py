"""The frame of a report: one self-contained HTML page, readable dark and light, that needs no network."""

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6472; --paper: #ffffff; --line: #d9dee6; --tint: #f3f5f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #a3adba; --paper: #14181f; --line: #333c49; --tint: #1e242e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p, figcaption, .soft { max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
.advice { background: var(--tint); border-left: 4px solid #3b8ed0; padding: .6rem 1rem .6rem 2rem; margin: 1rem 0; }
.advice li { margin: .4rem 0; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
summary { cursor: pointer; color: var(--soft); }
code { background: var(--tint); padding: .1em .3em; border-radius: 3px; }
"""


def markdown(text: str) -> str:
    """Text within a Markdown document: no HTML, no link or picture, no end of a table's cell."""
    return escape(" ".join(text.split()), quote=False).replace("](", "]\\(").replace("|", "\\|").replace("`", "&#96;")


def page(title: str, body: Sequence[str], head: str = "") -> str:
    """A whole HTML document. `title` is text, `body` are pieces of HTML, and `head` is what else its head has."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{head}</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def figure(name: str, svg: str, alt: str, caption: str) -> str:
    """A drawing within the page.

    Args:
        name: unique on the page.
        svg: a document as matplotlib writes it, its ink drawn in `currentColor`.
        alt: what the drawing shows, for who cannot see it.
    """
    drawing = _inlined(name, svg, alt)
    return f'<figure id="{escape(name)}">\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>'


def _inlined(name: str, svg: str, alt: str) -> str:
    """The bare <svg> element: named for screen readers, sized by the page, ids made unique on it."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>{rest}'


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; the first column names the rows."""
    header = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def listing(items: Sequence[str], kind: str = "advice") -> str:
    """A list of sentences."""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def folded(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"
