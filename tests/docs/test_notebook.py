"""docs/toy.ipynb: its cells run in order, at the smallest size, and what they make is shown in it."""

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from support.paths import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "docs" / "toy.ipynb").read_text("utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run(source: str, space: dict[str, Any]) -> object:
    """Run a cell; the value of the expression that it ends with, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body[-1]
    shown = last if isinstance(last, ast.Expr) else None
    tree.body = tree.body[:-1] if shown else tree.body
    exec(compile(tree, "toy.ipynb", "exec"), space)
    return (
        eval(compile(ast.Expression(shown.value), "toy.ipynb", "eval"), space) if isinstance(shown, ast.Expr) else None
    )


@pytest.mark.process
def test_its_cells_run_in_order(
    smoke_models: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "__main__"}
    settings, *cells = ("".join(cell["source"]) for cell in CELLS)
    run(settings, space)
    space |= {"PAIR": "smoke", "STEPS": 1, "WEIGHTINGS": space["WEIGHTINGS"][:3]}
    values = [run(cell, space) for cell in cells]
    assert sum(isinstance(value, Figure) for value in values) == 2
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:3]] == ["uniform", "first30", "iw"]
    assert float(said[-1].rpartition(" ")[2]) < 1e-4


def test_it_shows_what_its_cells_made() -> None:
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [cell["execution_count"] for cell in CELLS] == [1, 2, 3, 4, 5]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert len(json.dumps(NOTEBOOK)) < 200_000
