"""What other people's machines read of this repository: as it should be, as far as can be told without them."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from support.composing import composed
from support.paths import REPOSITORY

from iwopd import __version__
from iwopd.vllm.worker import StudentWeights

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
CHECKS = ["lint", "typecheck", "test", "test-browser"]


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_targets_that_there_are(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    steps = [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]
    run = [shlex.split(step["run"]) for step in steps if "run" in step]
    assert run
    assert all(words[0] == "make" and words[1] in targets for words in run)
    assert all("uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps)


def test_ci_runs_what_contributors_are_told_and_both_ends_of_what_is_allowed() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    assert [step["run"].split()[1] for step in jobs["check"]["steps"] if "run" in step] == CHECKS
    lowest = {each.name: str(each.specifier) for each in map(Requirement, PROJECT["dependencies"])}
    first, last = jobs["versions"]["strategy"]["matrix"]["include"]
    for name in ("torch", "transformers"):
        assert first[name].removesuffix(".0") == lowest[name].replace(">=", "=="), (
            "the lowest that pyproject.toml allows"
        )
        assert last[name] == ""


def test_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    names = {"vllm", "lora", "wandb", "report", "code", "tensorboard", "mlflow", "trackio"}
    assert names | {"all"} <= extras.keys()
    [everything] = map(Requirement, extras["all"])
    assert everything.extras == names


def test_the_dockerfile_copies_what_there_is_and_installs_extras_that_there_are() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = [line.split() for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert [words[0] for words in lines[:2]] == ["ARG", "FROM"]
    assert {words[0] for words in lines} <= {"ARG", "FROM", "COPY", "RUN", "WORKDIR", "ENTRYPOINT"}
    kept = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for words in lines:
        if words[0] == "COPY":
            assert all((REPOSITORY / name).exists() and f"!{name}" in kept for name in words[1:-1])
        if words[0] == "RUN":
            assert "--no-cache-dir" in words
    [asked] = re.findall(r"/src\[([\w,]+)\]", text)
    assert {*asked.split(",")} <= PROJECT["optional-dependencies"].keys()
    [version] = re.findall(r"VLLM=v([\d.]+)", text)
    [vllm] = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    assert vllm.specifier.contains(version)


def test_the_trainer_of_compose_is_told_where_its_servers_are() -> None:
    services = read("compose.yaml")["services"]
    verb, *overrides = services["trainer"]["command"]
    assert verb == "train"
    config = composed(*(each.replace("${STUDENT}", "S").replace("${TEACHER}", "T") for each in overrides))
    assert (config.student.path, config.teacher.path) == ("S", "T")
    rollout: Any = config.rollout  # the server's section, which has more than all sections share
    scoring: Any = config.scoring  # likewise
    assert (rollout.urls, scoring.urls) == (["http://student:8000"], ["http://teacher:8000"])
    assert services["trainer"]["depends_on"].keys() == services.keys() - {"trainer"}
    shared = {volume.partition(":")[2] for volume in services["student"]["volumes"]}
    assert rollout.sync_dir in shared
    worker = f"--worker-extension-cls={StudentWeights.__module__}.{StudentWeights.__name__}"
    assert worker in services["student"]["command"]
    devices = [each["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for each in services.values()]
    assert sorted(devices) == [["0"], ["1"], ["2"]]
    assert all("ports" not in each for each in services.values()), "control endpoints are for the trainer alone"


def test_longest_prompt_and_response_fit_in_the_servers() -> None:
    config = composed("+experiment=gsm8k_1gpu")
    for name in ("student", "teacher"):
        [length] = re.findall(r"--max-model-len=(\d+)", str(read("compose.yaml")["services"][name]["command"]))
        assert (config.data.max_prompt_tokens or 0) + config.rollout.max_tokens <= int(length)


def test_citation_and_changelog_name_this_version() -> None:
    cited = read("CITATION.cff")
    assert cited["version"] == PROJECT["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert f"\n## {__version__}\n" in (REPOSITORY / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_templates_are_forms(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    assert len({each["id"] for each in form["body"]}) == len(form["body"])
    assert all(each["type"] == "textarea" and each["attributes"]["label"] for each in form["body"])
