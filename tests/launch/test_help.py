"""What `--help` ends with, shell completion, and pages that messages name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.composing import composed
from support.paths import REPOSITORY, SOURCE
from support.running import iwopd

from iwopd.cli import VERBS
from iwopd.launch.examples import EXAMPLES

NAMED = re.compile(r"docs/[\w.-]+\.md(?:#[\w-]+)?")


@pytest.mark.cli
@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_ends_with_three_examples_and_its_page(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert iwopd(verb, "--help") == 0
    said = capsys.readouterr().out
    assert "== Configuration groups ==" in said
    *_, heading, first, second, third, _, page = said.rstrip("\n").split("\n")
    assert heading == "== Examples =="
    for command in (first, second, third):
        program, its_verb, *settings = shlex.split(command)
        assert (program, its_verb) == ("iwopd", verb)
        composed(*(setting.replace("MODEL", "x") for setting in settings))
    name = re.fullmatch(r"More is in (docs/[\w-]+\.md)\.", page)
    assert name
    assert f"iwopd {verb}" in (REPOSITORY / name[1]).read_text("utf-8")


def test_every_verb_has_examples() -> None:
    assert EXAMPLES.keys() == VERBS.keys()


def test_pages_that_the_program_names_are_there() -> None:
    files = [
        file for place in (SOURCE, REPOSITORY / "conf") for file in place.rglob("*") if file.suffix in (".py", ".yaml")
    ]
    named = {(file.name, page) for file in files for page in NAMED.findall(file.read_text("utf-8"))}
    assert len(named) > 5
    assert [each for each in named if not (REPOSITORY / each[1].partition("#")[0]).is_file()] == []


@pytest.mark.process
def test_bash_completes_verbs_groups_presets_and_fields(tmp_path: Path) -> None:
    """By the script that docs/getting-started.md has people evaluate."""
    program = tmp_path / "iwopd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m iwopd "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(iwopd -sc install=bash)"
        for COMP_LINE in "iwopd ev" "iwopd train weighting=first" "iwopd eval optim.l"; do
            words=($COMP_LINE); COMP_CWORD=$((${#words[@]} - 1)); COMP_POINT=${#COMP_LINE}
            hydra_bash_completion; echo "${COMPREPLY[@]}"
        done
        complete -p iwopd
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    verbs, presets, fields, rule = done.stdout.splitlines()
    assert verbs == "eval"
    assert presets.split() == ["weighting=first30", "weighting=first30_horizon", "weighting=first_k"]
    assert fields == "optim.lr="
    assert "hydra_bash_completion" in rule
