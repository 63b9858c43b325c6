"""Which charts a report has: of one run its quantities beside each other, of several runs each quantity by run."""

from collections.abc import Iterator, Sequence

from iwopd.report.charts import Chart, Line
from iwopd.report.run_data import Row, RunData, stages

STEP = "step"
NATS = "nats per token"
AVERAGED = 5  # steps, or a tenth of the run's, whose tokens make a line by position


def accuracy(runs: Sequence[RunData]) -> Chart:
    """Over the steps, with the 95 % intervals of the evaluations."""
    lines = list[Line | None]()
    for run in runs:
        names = _benchmarks(run)
        if len(runs) > 1:
            lines.append(run.line("eval/accuracy", run.name, band=True))
        elif names:
            lines += [run.line(f"eval/{name}/accuracy", name, band=True) for name in names]
            lines.append(run.line("eval/accuracy", "mean of all"))
        else:
            lines.append(run.line("eval/accuracy", "mean@n", band=True))
            if any(row.get("eval/k", 1) > 1 for row in run.evaluations):
                lines.append(run.line("eval/pass_at_k", "pass@k"))
            lines.append(run.line("eval/greedy_accuracy", "greedy"))
            lines.append(run.line("eval/accuracy_finished", "mean@n of those that end"))
    caption = "Share of right answers; the band is the 95 % interval over problems."
    return Chart("accuracy", "Accuracy", STEP, "share right", _there(lines), caption, y_from=0, y_to=1)


def outcome(runs: Sequence[RunData]) -> list[Chart]:
    """What a reader asks first: how good the student is, how close to the teacher, and whether it still ends."""
    reverse_kl = _by_run(runs, "reverse-kl", "Reverse KL", {"train/reverse_kl": "reverse KL"}, NATS, y_from=None)
    return [accuracy(runs), reverse_kl, ends(runs)]


def training(runs: Sequence[RunData]) -> list[Chart]:
    """Where student and teacher disagree, how long the responses are, and how the optimiser moves."""
    return [
        _by_run(runs, "advantage", "Size of the advantage", {"train/abs_advantage_mean": "mean |A_t|"}, NATS),
        by_position(runs, "reverse_kl", "Reverse KL by position", "log π_θ − log π_T"),
        by_position(runs, "abs_advantage", "Size of the advantage by position", "|log π_T − log π_θ|"),
        _by_run(
            runs,
            "lengths",
            "Response length",
            {
                "train/response_length": "mean",
                "train/length_p50": "median",
                "train/length_p90": "90 % are shorter",
                "train/horizon": "longest allowed",
            },
            "tokens",
        ),
        _by_run(runs, "learning-rate", "Learning rate", {"train/lr": "learning rate"}, "learning rate"),
        _by_run(runs, "gradient-norm", "Gradient norm", {"train/grad_norm": "before clipping"}, "norm"),
    ]


def cost(runs: Sequence[RunData]) -> list[Chart]:
    """What it took, and whether engine and trainer agree."""
    kinds = {f"time/{stage.name}_s": stage.name for run in runs for stage in stages(run)}
    memory = {f"memory/{stage.name}_mib": stage.name for run in runs for stage in stages(run) if stage.memory}
    memory = {"memory/peak_mib": "GPU, PyTorch's peak", **memory}
    return [
        seconds(runs) if len(runs) > 1 else _by_run(runs, "seconds", "Seconds per stage", kinds, "seconds"),
        _by_run(
            runs,
            "tokens",
            "Tokens per step",
            {"tokens/generated": "generated", "tokens/scored": "scored", "tokens/trained": "trained on"},
            "tokens",
        ),
        gaps(runs),
        most_memory(runs) if len(runs) > 1 else _by_run(runs, "memory", "Memory", memory, "MiB"),
    ]


def ends(runs: Sequence[RunData]) -> Chart:
    """The share of responses that end by themselves."""
    lines = list[Line | None]()
    for run in runs:
        lines.append(run.line("train/finished", "in training" if len(runs) == 1 else run.name))
        cut = run.line("eval/truncated", "in evaluations") if len(runs) == 1 else None
        if cut is not None:
            lines.append(Line(cut.label, cut.x, [1 - share for share in cut.y]))
    caption = "By an end-of-sequence token, before the longest response allowed."
    return Chart("ends", "Share that ends", STEP, "share of responses", _there(lines), caption, y_from=0, y_to=1)


def by_position(runs: Sequence[RunData], key: str, title: str, said: str) -> Chart:
    """Means by tenth of the response, of the run's first steps and its last."""
    lines = list[Line]()
    for run in runs:
        few = max(1, min(AVERAGED, len(run.positions) // 2))
        parts = {"first": run.positions[:few], "last": run.positions[-few:]}
        for name, rows in parts.items() if len(run.positions) > 1 else [("last", run.positions)]:
            means = dict(_means(rows, key))
            label = f"{name} {len(rows)} steps" if len(rows) > 1 else f"{name} step"
            label = label if len(runs) == 1 else f"{run.name}, {label}"
            if means:
                lines.append(Line(label, [10 * tenth + 5 for tenth in means], list(means.values())))
    caption = f"{said} of the sampled tokens, mean of each tenth of the response."
    return Chart(f"position-{key}", title, "% of the response", NATS, lines, caption, y_from=None if "kl" in key else 0)


def _means(rows: Sequence[Row], key: str) -> Iterator[tuple[int, float]]:
    """The tenths that have tokens, and their means over all rows."""
    for tenth in range(len(rows[0]["tokens"]) if rows else 0):
        pairs = [(row[key][tenth], row["tokens"][tenth]) for row in rows if row[key][tenth] is not None]
        count = sum(tokens for _, tokens in pairs)
        if count:
            yield tenth, sum(value * tokens for value, tokens in pairs) / count


def gaps(runs: Sequence[RunData]) -> Chart:
    """How far sampler and trainer are apart."""
    kinds = {
        "train/sampler_gap_mean": "sampler gap, mean",
        "sync/parity_mean_gap": "parity after sync, mean",
        "sync/parity_max_gap": "parity after sync, largest",
    }
    several = {"train/sampler_gap_mean": "sampler gap, mean"}
    chart = _by_run(runs, "gaps", "Sampler gap and parity", kinds if len(runs) == 1 else several, NATS)
    caption = "|log-prob of the sampler − that of the trainer| of the same tokens; parity is measured after a sync."
    return Chart(chart.name, chart.title, STEP, NATS, chart.lines, caption, log=True)


def seconds(runs: Sequence[RunData]) -> Chart:
    """A step's seconds, all stages together, by run."""
    lines = []
    for run in runs:
        sums = [sum(value for key, value in row.items() if key.startswith("time/")) for row in run.steps]
        lines.append(Line(run.name, [row["step"] for row in run.steps], sums))
    return Chart("seconds", "Seconds per step", STEP, "seconds", lines, "All stages of a step together.", y_from=0)


def most_memory(runs: Sequence[RunData]) -> Chart:
    """The most of any stage, of the GPU where there is one, by run."""
    lines = []
    for run in runs:
        found = [(float(row["step"]), most) for row in run.steps if (most := _most(row)) is not None]
        lines.append(Line(run.name, [step for step, _ in found], [most for _, most in found]))
    return Chart("memory", "Memory", STEP, "MiB", lines, "The most of any stage; a GPU's where there is one.", y_from=0)


def _most(row: Row) -> float | None:
    if "memory/peak_mib" in row:
        return row["memory/peak_mib"]
    return max((value for key, value in row.items() if key.startswith("memory/")), default=None)


def _by_run(
    runs: Sequence[RunData], name: str, title: str, kinds: dict[str, str], unit: str, *, y_from: float | None = 0
) -> Chart:
    """Every kind of one run; of several runs the first kind that one has."""
    if len(runs) == 1:
        return Chart(name, title, STEP, unit, _there([runs[0].line(*each) for each in kinds.items()]), y_from=y_from)
    there = [key for key in kinds if any(key in row for run in runs for row in run.metrics)]
    if not there:
        return Chart(name, title, STEP, unit, [])
    lines = [run.line(there[0], run.name) for run in runs]
    said = f"Of each run: {kinds[there[0]]}." if len(kinds) > 1 else ""
    return Chart(name, title, STEP, unit, _there(lines), said, y_from=y_from)


def _benchmarks(run: RunData) -> list[str]:
    """Names of a run's benchmarks, where there are several."""
    parts = [key.split("/") for key in dict.fromkeys(key for row in run.evaluations for key in row)]
    return [part[1] for part in parts if len(part) == 3 and part[0] == "eval" and part[2] == "accuracy"]


def _there(lines: Sequence[Line | None]) -> list[Line]:
    return [line for line in lines if line is not None]
