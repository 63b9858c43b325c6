"""report.html of a training run, or of several beside each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from iwopd.config.presets import groups
from iwopd.config.stored import leaves
from iwopd.redact import cleaned
from iwopd.report import run_figures
from iwopd.report.charts import Chart, count, drawn
from iwopd.report.page import page, table
from iwopd.report.run_data import RunData, stages
from iwopd.report.tokens import MOST_BYTES, Packed, packed

MADE_BY = "iwopd report"  # <meta name="generator">: by it a page of ours is known
# Nothing may be fetched, whatever a response holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"
OF_THE_PLACE = ("run.dir", "run.name", "run.date", "run.resume", "schema", "verb", "environment")


def run_page(runs: Sequence[RunData]) -> str:
    """The page. Several runs share charts, and their responses can be put side by side."""
    runs = [_cleaned(run) for run in runs]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    body = [f"<h1>{escape(title)}</h1>", *_summary(runs)]
    body += ["" if any(run.evaluations for run in runs) else _no_accuracy(runs), _charts(run_figures.outcome(runs))]
    body += ["<h2>Responses, token by token</h2>", *_responses(runs)]
    body += ["<h2>Training</h2>", _charts(run_figures.training(runs)) or "<p>No step was taken yet.</p>"]
    body += ["<h2>Time, memory and agreement</h2>", *_stages(runs), _charts(run_figures.cost(runs))]
    body += ["<h2>Settings</h2>", *_settings(runs)]
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="generator" content="{MADE_BY}">\n<style>{_file("run.css")}</style>'
    )
    return page(title, [*body, f"<script>{_file('run.js')}</script>"], head)


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _cleaned(run: RunData) -> RunData:
    """Less the secrets that its settings may hold."""
    return RunData(**{**vars(run), "config": cleaned(run.config), "overrides": cleaned(list(run.overrides))})


def _charts(charts: Sequence[Chart]) -> str:
    shown = [figure for chart in charts if (figure := drawn(chart))]
    return f'<div class="charts">{"".join(shown)}</div>' if shown else ""


def _no_accuracy(runs: Sequence[RunData]) -> str:
    has = any(run.setting("eval.benchmarks") for run in runs)
    reason = "Nothing was evaluated yet." if has else "There is no benchmark: nothing is evaluated."
    return f"<p>{reason}</p>"


# ---------------------------------------------------------------------------------------------- the run in short


def _summary(runs: Sequence[RunData]) -> list[str]:
    if len(runs) == 1:
        parts = [
            f"<div{' class=main' if place < 2 else ''}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for place, (name, value) in enumerate(_facts(runs[0]).items())
        ]
        return [f'<dl class="facts">{"".join(parts)}</dl>']
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = [[name, *(each.get(name, "–") for each in facts)] for name in names]
    return [table("The runs", ["", *(run.name for run in runs)], rows)]


def _facts(run: RunData) -> dict[str, str]:
    """What a reader asks first."""
    facts = {"accuracy": _accuracy(run.evaluations), "steps": _extent(run)}
    for key in ("student", "teacher"):
        facts[key] = str(run.setting(f"{key}.path"))
    facts["weighting"] = _section(run.setting("weighting"), "scheme")
    facts["loss"] = str(run.setting("loss.kind"))
    facts["prompts a step × responses"] = f"{run.setting('data.batch_size')} × {run.setting('rollout.n')}"
    facts["tokens generated"] = count(run.total("tokens/generated"))
    facts["time, all stages"] = _duration(sum(stage.seconds for stage in stages(run)))
    return facts


def _accuracy(measured: Sequence[Mapping[str, Any]]) -> str:
    if not measured:
        return "not measured"
    first, last = measured[0], measured[-1]
    said = [f"{row['eval/accuracy']:.3f}" for row in ([first] if len(measured) == 1 else [first, last])]
    has = "eval/accuracy_low" in last
    interval = f" [{last['eval/accuracy_low']:.3f}, {last['eval/accuracy_high']:.3f}]" if has else ""
    return " → ".join(said) + interval


def _extent(run: RunData) -> str:
    tokens = run.setting("run.tokens")
    of = f"{run.step:,} of {run.setting('run.steps'):,}" if tokens is None else f"{run.step:,}, of {tokens:,} tokens"
    return of + (", finished" if run.finished else " so far")


def _section(section: object, first: str) -> str:
    """A section in one line: its name, and its settings."""
    if not isinstance(section, Mapping):
        return str(section)
    more = ", ".join(f"{key} {value}" for key, value in section.items() if key != first)
    return f"{section.get(first)}" + (f" ({more})" if more else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


# ---------------------------------------------------------------------------------------------- responses

ABOUT = (
    "Each token is coloured by how far student and teacher disagree about it, |A_t| = |log π_T − log π_θ| in nats, or "
    "by the weight that a scheme gives it. The weights are those of the program's own schemes; one that looks at a "
    "whole batch sees the responses of an evaluation that are kept here. Keys within a response: arrows, Home, End, "
    "Page Up and Page Down; n goes to the next of its most outstanding tokens."
)


def _responses(runs: Sequence[RunData]) -> Iterator[str]:
    columns = [column for run in runs for column in run.columns]
    if not any(column.responses for column in columns):
        yield "<p>No responses were kept: they are at an evaluation, where run.samples is above 0.</p>"
        return
    made = packed(columns, MOST_BYTES)
    yield f'<p class="soft">{escape(ABOUT)}</p>'
    if made.shown < made.problems:
        yield f"<p>{made.shown} of {made.problems} problems found room here; samples.jsonl has all responses.</p>"
    if not made.shown:
        return
    # Of one run before and after training; of several the first and the last after it.
    yield _controls(made, 0 if len(runs) == 1 else max(0, len(runs[0].columns) - 1))
    yield '<p id="count" role="status"></p>\n<h3 id="prompt-title">Prompt</h3>'
    yield '<div id="prompt" tabindex="0" role="region" aria-labelledby="prompt-title"></div>\n<p id="answer"></p>'
    yield (
        '<p class="key"><span id="scale-name"></span><span id="scale-low"></span>'
        '<span id="scale" aria-hidden="true"></span><span id="scale-high"></span></p>'
    )
    yield f'<div class="panes">{PANE * min(2, len(columns))}</div>'
    yield "<noscript><p>The responses are shown by a script, which this browser does not run.</p></noscript>"
    yield f'<script type="application/json" id="responses-index">{_json(made.index)}</script>'
    for place, payload in enumerate(made.payloads):
        yield f'<script type="text/plain" id="response-{place}">{payload}</script>'


PANE = """
<article class="pane">
<h3 class="title"></h3>
<p class="verdict"></p>
<canvas class="overview" role="img"
 aria-label="The whole response from left to right; higher where it is coloured more"></canvas>
<div class="tokens" tabindex="0" role="group"></div>
<div class="readout" role="status"></div>
</article>
"""


def _controls(made: Packed, first: int) -> str:
    names, schemes = made.index["columns"], made.index["schemes"]
    two = len(names) > 1
    filters = {"all": "all", "right": "right", "wrong": "wrong", "cut": "cut off"}
    parts = [_radios("filter", "second response is" if two else "response is", filters)]
    if two:
        for name, label, place in (("left", "first", first), ("right", "second", len(names) - 1)):
            parts.append(_select(name, label, names, place))
    parts.append(
        '<div class="field"><span><label for="problem">problem</label></span><span class="row">'
        '<select name="problem" id="problem"></select>'
        '<button type="button" name="previous" aria-label="previous problem">←</button>'
        '<button type="button" name="next" aria-label="next problem">→</button></span></div>'
    )
    colours = {"advantage": "|A_t|", "weight": "weight", "both": "weight × |A_t|"}
    parts.append(_radios("colour", "colour", colours))
    parts.append(_select("scheme", "weights of", schemes, 0))
    return f'<form id="controls" aria-label="which responses, and what colours them">{"".join(parts)}</form>'


def _radios(name: str, legend: str, choices: Mapping[str, str]) -> str:
    inputs = [
        f'<label><input type="radio" name="{name}" value="{value}"{"" if place else " checked"}> {escape(text)}</label>'
        for place, (value, text) in enumerate(choices.items())
    ]
    return f"<fieldset><legend>{escape(legend)}</legend>{''.join(inputs)}</fieldset>"


def _select(name: str, label: str, choices: Sequence[str], chosen: int) -> str:
    options = [
        f'<option value="{place}"{" selected" if place == chosen else ""}>{escape(text)}</option>'
        for place, text in enumerate(choices)
    ]
    return f'<label class="field"><span>{escape(label)}</span><select name="{name}">{"".join(options)}</select></label>'


def _json(values: object) -> str:
    """For within <script>: no text can end it, or open a comment in it."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


# ---------------------------------------------------------------------------------------------- stages and settings


def _stages(runs: Sequence[RunData]) -> Iterator[str]:
    for run in runs:
        found = stages(run)
        whole = sum(stage.seconds for stage in found) or 1.0
        rows = [
            [
                stage.name,
                _duration(stage.seconds),
                f"{stage.seconds / whole:.0%}",
                f"{stage.seconds / max(1, stage.rows):,.2f}",
                "–" if stage.tokens is None else f"{stage.tokens:,.0f}",
                "–" if stage.tokens is None or not stage.seconds else f"{stage.tokens / stage.seconds:,.0f}",
                "–" if stage.memory is None else f"{stage.memory:,.0f}",
            ]
            for stage in found
        ]
        heads = ["stage", "in all", "share", "seconds each time", "tokens", "tokens/s", "most host memory, MiB"]
        if rows:
            yield table("Stages" if len(runs) == 1 else f"Stages of {run.name}", heads, rows)


def _settings(runs: Sequence[RunData]) -> Iterator[str]:
    if len(runs) > 1:
        rows = _differing(runs)
        yield (
            table("Settings in which the runs differ", ["setting", *(run.name for run in runs)], rows)
            if rows
            else "<p>The runs have the same settings.</p>"
        )
    for run in runs:
        presets, rows = _set(run)
        of = "" if len(runs) == 1 else f" of {run.name}"
        named = ", ".join(f"<code>{escape(each)}</code>" for each in presets)
        yield f"<p>Presets{escape(of)}: {named or 'the default ones'}</p>"
        if rows:
            yield table(f"Settings{of} that differ from the presets", ["setting", "value"], rows)
        else:
            yield f"<p>No setting{escape(of)} differs from them.</p>"


def _set(run: RunData) -> tuple[list[str], list[list[str]]]:
    """The presets that a command line chose, and the single settings beyond them with their values."""
    known, presets, rows = {*groups(), "experiment", "debug"}, list[str](), list[list[str]]()
    for override in run.overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        if key in known:
            presets.append(override)
        elif key not in OF_THE_PLACE and not key.startswith("hydra"):
            value = run.setting(key)
            rows.append([key, "removed" if override.startswith("~") else _value(value)])
    return presets, rows


def _differing(runs: Sequence[RunData]) -> list[list[str]]:
    flat = [dict(leaves(run.config)) for run in runs]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key.split(".")[0] not in OF_THE_PLACE]
    return [
        [key, *(_value(each[key]) if key in each else "–" for each in flat)]
        for key in keys
        if key not in OF_THE_PLACE and len({_value(each.get(key)) if key in each else "–" for each in flat}) > 1
    ]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
