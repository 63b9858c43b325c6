"""Private parts of libraries: in one module, there, and one line where an installed version has them not."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import REPOSITORY, SOURCE
from support.running import refused

from iwopd import _compat
from iwopd.errors import UnsupportedVersionError

LIBRARIES = ("torch", "transformers", "vllm", "hydra", "omegaconf", "peft", "huggingface_hub", "datasets")


@pytest.mark.parametrize("name", _compat.PRIVATE)
def test_each_is_there(name: str) -> None:
    assert getattr(_compat, name).__name__ == name


def test_type_checkers_see_the_same() -> None:
    tree = ast.parse((SOURCE / "_compat.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {
        each.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for each in node.names
    }
    assert {name: module for name, module in imports.items() if name} == {
        name: module for name, (_, module) in _compat.PRIVATE.items()
    }


def test_the_oldest_supported_release_is_the_oldest_that_may_be_installed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    oldest = dict(found.groups() for line in required if (found := re.match(r"([\w-]+)>=([\d.]+)", line)))
    assert {name: re.match(r">=([\d.]+),<", versions)[1] for name, versions in _compat.SUPPORTED.items()} == {  # type: ignore[index]  # each has such a range
        name: oldest[name] for name in _compat.SUPPORTED
    }


def test_one_that_is_gone_says_which_versions_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("transformers.core_model_loading.revert_weight_conversion")
    with pytest.raises(UnsupportedVersionError) as caught:
        _ = _compat.revert_weight_conversion
    found = str(caught.value)
    assert re.match(
        r"transformers \d+\.\d+\.\d+: transformers.core_model_loading has no revert_weight_conversion", found
    )
    assert found.endswith("it works with transformers>=5.17,<5.20: pip install 'transformers>=5.17,<5.20'")


def test_a_module_that_is_gone_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_compat.PRIVATE, "FakeTensor", ("torch", "torch._no_such_module"))
    with pytest.raises(
        UnsupportedVersionError, match=r"torch \S+: torch\._no_such_module has no FakeTensor, .*>=2\.11"
    ):
        _ = _compat.FakeTensor


def test_a_library_that_is_not_installed_is_not_one_of_a_wrong_version() -> None:
    with pytest.raises(ModuleNotFoundError):
        _compat.load("vllm", "no_such_library.part", "name")


def test_what_only_makes_it_faster_may_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.ops.mkldnn", object())
    assert _compat.onednn_linear() is None
    assert _compat.onednn_pack() is None


@pytest.mark.cli
def test_on_the_command_line_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("hydra._internal.utils.get_args_parser")
    assert refused(capsys, "train").startswith("iwopd: hydra-core 1.")


def private_parts(file: Path) -> Iterator[str]:
    """Modules, names and attributes with an underscore that a file takes from one of the libraries."""
    of_a_library = set[str]()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                found = {f"{module}.{each.name}": each.asname or each.name for each in names}
            case ast.Import(names=names):
                found = {each.name: each.asname or each.name.partition(".")[0] for each in names}
            case _:
                continue
        for whole, name in found.items():
            if whole.partition(".")[0] in LIBRARIES:
                of_a_library.add(name)
                if is_private(whole):
                    yield whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            if whole.partition(".")[0] in of_a_library and is_private(whole):
                yield whole


def is_private(whole: str) -> bool:
    return re.search(r"\._[a-z]", whole) is not None


@pytest.mark.process
@pytest.mark.parametrize("folder", ["src", "scripts"])
def test_nothing_else_takes_one(folder: str) -> None:
    files = [file for file in (REPOSITORY / folder).rglob("*.py") if file.name != "_compat.py"]
    assert files
    assert [f"{file}: {found}" for file in files for found in private_parts(file)] == []


def test_one_is_found(tmp_path: Path) -> None:
    lines = ["import torch", "from hydra import _internal", "import vllm.x as v"]
    lines += ["torch.ops.a._b(1)", "v._c = 1", "self._d = torch.e"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert sorted(private_parts(tmp_path / "a.py")) == ["hydra._internal", "torch.ops.a._b", "v._c"]
