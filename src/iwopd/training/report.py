"""report.html of runs: what their folders hold, with the weights that every scheme gives the responses they kept."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iwopd.errors import IwopdError, first_line
from iwopd.numerics import WeightInput
from iwopd.report.run_data import RunData
from iwopd.report.run_page import run_page
from iwopd.report.tokens import Column, Response
from iwopd.runs import about
from iwopd.runs.files import DRAFT, first_and_last, not_written, read_rows
from iwopd.runs.saved_config import saved_config
from iwopd.seeding import derive_seed
from iwopd.training.objective import checked_weights
from iwopd.weighting import SCHEMES, Weighting
from iwopd.weighting.presets import compared_schemes

log = logging.getLogger(__name__)

FILE = "report.html"
Rows = Sequence[Mapping[str, Any]]


def refresh(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a run's report.html again. What fails in it is a warning: a report must not stop a training.

    Args:
        config: as config.yaml has it.
    """
    try:
        write_page([run_data(folder, folder.resolve().name, config)], folder / FILE)
    except Exception as error:  # of whatever a folder may hold, or a disk may do
        log.warning("%s: not written (%s: %s)", folder / FILE, type(error).__name__, first_line(error))


def write(folders: Sequence[Path], output: Path) -> None:
    """One page about the runs in some folders.

    Raises:
        RunFolderError: a folder holds no run that can be read, or the page cannot be written.
    """
    runs = []
    for folder, name in zip(folders, _names(folders), strict=True):
        config, _ = saved_config(folder)
        runs.append(run_data(folder, name, config))
    write_page(runs, output)


def write_page(runs: Sequence[RunData], output: Path) -> None:
    """The page in its file, whole or as it was.

    Raises:
        RunFolderError: it cannot be written.
    """
    text = run_page(runs)
    # Not flushed to the disk, for it can be made again; by a name of this process's, for several may write it.
    draft = output.with_name(f"{DRAFT}{os.getpid()}-{output.name}")
    try:
        try:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
            draft.replace(output)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(output, error) from error


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or as much of their paths as tells them apart."""
    resolved = [folder.resolve() for folder in folders]
    for parts in range(1, max(len(each.parts) for each in resolved) + 1):
        names = ["/".join(each.parts[-parts:]) for each in resolved]
        if len(set(names)) == len(names):
            break
    return names


def run_data(folder: Path, name: str, config: Mapping[str, Any]) -> RunData:
    """What a report says of the run in a folder."""
    metrics = read_rows(folder / "metrics.jsonl")
    columns = []
    for rows in first_and_last(folder / "samples.jsonl"):
        step = rows[0].get("step", 0)
        when = "before training" if step == 0 else f"after step {step}"
        columns.append(Column(f"{name}, {when}", responses(rows, config.get("weighting"))))
    overrides = about.read(folder).get("overrides")
    final = folder / "final"
    return RunData(
        name=name,
        config=config,
        overrides=overrides if isinstance(overrides, list) else [],
        metrics=metrics,
        positions=read_rows(folder / "positions.jsonl"),
        columns=columns,
        finished=final.is_dir(),
    )


# ---------------------------------------------------------------------------------------------- weights of responses


def responses(rows: Rows, chosen: object) -> list[Response]:
    """Rows of samples.jsonl of one evaluation, with the weights of every scheme.

    Args:
        chosen: the run's `weighting` section; its weights are those the run wrote.
    """
    scheme = _scheme(chosen)
    trained = f"as trained: {scheme.name}" if scheme else "as trained"
    found = [dict[str, numpy.ndarray]() for _ in rows]
    for row, own in zip(rows, found, strict=True):
        own[trained] = _spread(row, row["weights"])
    for benchmark in dict.fromkeys(row.get("benchmark") for row in rows):
        places = [place for place, row in enumerate(rows) if row.get("benchmark") == benchmark and row["advantages"]]
        if not places:
            continue
        given = weight_input([rows[place] for place in places])
        for name, weights in every_weight(given).items():
            for place, values in zip(places, weights, strict=True):
                found[place][name] = _spread(rows[place], values[: len(rows[place]["advantages"])].tolist())
    return [_response(row, weights) for row, weights in zip(rows, found, strict=True)]


def _scheme(section: object) -> Weighting | None:
    """Of a run's config; None where this program has no such scheme."""
    with suppress(Exception):  # of another version, or a function that is no longer there
        assert isinstance(section, dict)
        return SCHEMES[section["scheme"]](**section)
    return None


def every_weight(given: WeightInput) -> dict[str, Tensor]:
    """[batch, time] weights by the name of the scheme's preset."""
    found = {}
    for name, scheme in compared_schemes(SCHEMES["uniform"]()).items():
        with suppress(IwopdError):  # weights that are not finite
            found[name] = checked_weights(scheme, given)
    return found


def weight_input(rows: Rows) -> WeightInput:
    """What a scheme sees of rows of one evaluation and benchmark, as it saw it in the run."""
    lengths = torch.tensor([len(row["tokens"]) for row in rows])
    starts = torch.tensor([row["start"] for row in rows])

    def padded(key: str) -> Tensor:
        return pad_sequence([torch.tensor(row[key], dtype=torch.float32) for row in rows], batch_first=True)

    advantages = padded("advantages")
    counts = torch.tensor([len(row["advantages"]) for row in rows])
    places = torch.arange(advantages.shape[-1])
    return WeightInput(
        advantages=advantages,
        mask=places < counts[:, None],
        positions=starts[:, None] + places,
        lengths=lengths,
        teacher_logprobs=padded("teacher_logprobs"),
        progress=float(rows[0].get("progress", 0.0)),
        seeds=[derive_seed("samples", f"{row['prompt_id']}#{row['sample']}") for row in rows],
    )


def _response(row: Mapping[str, Any], weights: Mapping[str, numpy.ndarray]) -> Response:
    teacher, advantages = _spread(row, row["teacher_logprobs"]), _spread(row, row["advantages"])
    own = row.get("student_logprobs")
    return Response(
        key=(str(row.get("benchmark", "")), str(row["prompt_id"]), int(row["sample"])),
        prompt=row["prompt"],
        answer=None if row["answer"] is None else str(row["answer"]),
        correct=bool(row["correct"]),
        cut=row["finish_reason"] == "length",
        tokens=row["tokens"],
        student=_spread(row, own) if own else teacher - advantages,
        teacher=teacher,
        advantages=advantages,
        weights=weights,
    )


def _spread(row: Mapping[str, Any], values: Sequence[float]) -> numpy.ndarray:
    """[tokens]: NaN outside of what was scored."""
    found = numpy.full(len(row["tokens"]), numpy.nan)
    found[row["start"] : row["start"] + len(values)] = values
    return found
