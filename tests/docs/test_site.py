"""The documentation as a site: it builds strictly, fetches nothing, and its configuration reference is complete."""

import importlib.util
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from support.composing import REQUIRED
from support.paths import REPOSITORY

from iwopd.config import register_schemas
from iwopd.launch import config_folder

# Sections whose keys are names: what a user calls an entry.
NAMED = re.compile(r"^(eval\.benchmarks|data\.sources|teachers)\.[^.]+")
EMPTY = {"eval.benchmarks", "parallel"}  # sections, where they have no keys
ADDED = {"experiment", "debug"}  # they set fields of the other groups, +experiment=NAME
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| (.+) \| (.+) \|$", re.MULTILINE)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[str, str, str]]:
    """Default, values and meaning of each field, by key."""
    return {
        key: (default, values, text)
        for key, default, values, text in ROW.findall(script("config_reference").reference())
    }


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items_ex(resolve=False):
        if isinstance(value, DictConfig) and len(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def presets() -> Iterator[list[str]]:
    """Overrides that together choose every preset of every group: the groups' first ones, second ones, …"""
    columns = []
    for group in sorted(folder.name for folder in config_folder().iterdir() if folder.is_dir()):
        if group in ADDED:
            continue
        names = sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))
        chosen = [f"{group}=[{name}]" if group == "benchmark" else f"{group}={name}" for name in names]
        columns.append([[one, *REQUIRED.get((group, name), [])] for one, name in zip(chosen, names, strict=True)])
    for row in zip_longest(*columns, fillvalue=()):
        yield [override for choice in row for override in choice]


def keys_of_all_presets() -> set[str]:
    """Every key that a preset of any group composes to."""
    register_schemas()
    found = set()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for overrides in presets():
            found |= set(leaves(compose("config", overrides)))
    return {NAMED.sub(r"\1.NAME", key) for key in found}


@pytest.mark.process
def test_every_field_is_in_the_reference(rows: dict[str, tuple[str, str, str]]) -> None:
    assert keys_of_all_presets() - set(rows) - EMPTY == set()
    empty = [key for key, cells in rows.items() if not all(cell.strip() for cell in cells)]
    assert not empty, "a field has a default, the values it may have, and a meaning"


@pytest.mark.parametrize(
    ("key", "default", "values"),
    [
        ("weighting.gamma", "0.5", "number, ≥ 0"),
        ("weighting.fraction", "0.3", "number, > 0, ≤ 1"),
        ("loss.normalize", "kept", "`kept`, `all`, `sequence`"),
        ("run.tokens", "null", "whole number, ≥ 1, null"),
        ("student.path", "???", "text"),
        ("rollout.engine.batch_tokens", "4096", "whole number, ≥ 1"),
        ("scoring.engine.batch_tokens", "2048", "whole number, ≥ 1"),  # what the section that holds it sets
        ("optim.betas", "[0.9, 0.999]", "list"),
        ("data.sources.NAME.weight", "1.0", "number, > 0"),
    ],
)
def test_defaults_and_values(rows: dict[str, tuple[str, str, str]], key: str, default: str, values: str) -> None:
    printed = script("config_reference").reference()
    assert f"| `{key}` | `{default}` | {values} |" in printed


@pytest.mark.process
def test_the_site_builds_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(REPOSITORY / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # raises where a link or an anchor goes nowhere
    pages = {page.name: page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    assert {"index.html", "weightings.html", "configuration.html"} <= set(pages)
    for name, text in pages.items():
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:[^\" >]+)", text)
        assert not fetched, name
    assert "<code>weighting.gamma</code>" in pages["configuration.html"]


def test_readme_is_a_page() -> None:
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 130


def test_links_of_readme_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if not target.startswith("http")]
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
    assert len(targets) > 15


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("weighting", "README.md"),
        ("weighting", "docs/weightings.md"),
        ("loss", "docs/losses.md"),
        ("benchmark", "docs/evaluation.md"),
    ],
)
def test_every_preset_has_its_place(group: str, page: str) -> None:
    """A page that lists a group's presets lists all of them."""
    text = (REPOSITORY / page).read_text("utf-8")
    names = [file.stem for file in (config_folder() / group).glob("*.yaml")]
    assert [name for name in names if not re.search(rf"[`\s]{re.escape(name)}[`\s]", text)] == []
