"""A few responses for trackers: as a table, as a page whose tokens are shaded by their weights, as a figure."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

from iwopd.redact import printable

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("step", "benchmark", "prompt", "response", "answer", "correct", "finish_reason")
PER_TOKEN = ("weights", "advantages", "teacher_logprobs", "sampler_logprobs")
_drawing = Lock()  # each tracker has a thread, and matplotlib is for one at a time


def table(step: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A row per response, as columns; what there is per token is JSON."""
    plain = {column: [({"step": step} | dict(row)).get(column) for row in rows] for column in COLUMNS}
    return plain | {column: [json.dumps(row[column]) for row in rows] for column in PER_TOKEN}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """All of them as HTML."""
    return "<hr>".join(map(shaded_sample, rows))


def shaded_sample(row: Mapping[str, Any]) -> str:
    """A problem and its response as HTML, each token the darker the larger its weight.

    Advantage and weight show under the pointer.

    Args:
        row: of `iwopd.training.samples.sample_rows`; tokens outside the scheme's window have no weight, and no shade.
    """
    start, weights = row["start"], row["weights"]
    largest = max(weights, default=0.0) or 1.0
    parts = [f"<b>{_escaped(row['prompt'])}</b><br>{'right' if row['correct'] else 'wrong'}: "]
    for place, token in enumerate(row["tokens"]):
        text = _escaped(token)
        if start <= place < start + len(weights):
            weight, advantage = weights[place - start], row["advantages"][place - start]
            shade = f"background:rgba(240,140,0,{max(weight, 0.0) / largest:.2f})"
            text = f'<span style="{shade}" title="weight {weight:.3f}, advantage {advantage:.3f} nats">{text}</span>'
        parts.append(text)
    return f'<div style="font-family:monospace;white-space:pre-wrap">{"".join(parts)}</div>'


def _escaped(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "⏎<br>")


def by_position(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The mean of ``advantages`` (their size) or ``weights`` at each token from the first; 0 outside the window."""
    longest = max((row["start"] + len(row[name]) for row in rows), default=0)
    sums, counts = [0.0] * longest, [0] * longest
    for row in rows:
        for place in range(len(row["tokens"])):
            if place < longest:
                counts[place] += 1
        for place, value in enumerate(row[name], row["start"]):
            sums[place] += abs(value)
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]


def figure(rows: Sequence[Mapping[str, Any]]) -> "np.ndarray | None":
    """|A_t| (nats) and weight over the position within the response, [height, width, 3] in bytes; None without
    matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    figures, canvases = import_module("matplotlib.figure"), import_module("matplotlib.backends.backend_agg")
    with _drawing:
        drawn = figures.Figure(figsize=(7, 3), dpi=100, layout="constrained")
        canvas, axes = canvases.FigureCanvasAgg(drawn), drawn.subplots()
        other = axes.twinx()
        axes.plot(by_position(rows, "advantages"), color="#d55e00", label="|A|, nats")
        other.plot(by_position(rows, "weights"), color="#0072b2", label="weight")
        axes.set(xlabel="token of the response", ylabel="|A|, nats")
        other.set_ylabel("weight")
        drawn.legend(loc="outside upper center", ncols=2)
        canvas.draw()
        return import_module("numpy").asarray(canvas.buffer_rgba())[..., :3].copy()
