"""What README and docs/ tell people to type works.

Commands that need nothing special are run, with models and sizes made small. A block that begins with `# needs …` is
not, and neither is what other tests run for longer (`RUN_ELSEWHERE`). What is not run here composes and passes the
checks of its config; of a study, every arm does.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.composing import composed
from support.documents import Block, Command, blocks, commands
from support.paths import REPOSITORY
from support.running import iwopd

from iwopd.ablate.arms import CommandLine, study_arms, study_runs
from iwopd.ablate.students import study_students
from iwopd.cli import VERBS
from iwopd.launch import split_flags
from iwopd.scoring.vllm_server_states import FLAGS
from iwopd.toy import toy_rows

pytestmark = pytest.mark.process

NEEDS = {"a GPU", "the hub", "the network", "vLLM", "servers", "a login"}
COMMANDS = commands()

# The smallest pair, one step, a few tokens. A group that the command chooses itself is left as it is.
GROUPS = {
    "student": ("student=smoke",),
    "teacher": ("teacher=smoke",),
    "data": ("data=file", "data.path=a.jsonl"),
    "benchmark": ("benchmark=[file]", "eval.benchmarks.file.path=test.jsonl"),
}
SIZES = {
    "train": ("run.samples=0", "data.batch_size=2", "rollout.max_tokens=8", "eval.greedy=false"),
    "eval": ("rollout.max_tokens=8", "eval.k=1", "eval.n=2", "eval.greedy=false"),
    "report": (),
    "doctor": ("doctor.live=false", "data.batch_size=2", "rollout.max_tokens=8"),
}


def of_verbs() -> list[Command]:
    """The `iwopd VERB …` commands."""
    return [command for command in COMMANDS if command.words[:1] == ("iwopd",) and command.words[1] in VERBS]


# Words of commands that other tests run, at sizes of their own. `make` targets are run by CI.
RUN_ELSEWHERE = {
    "ablate": "tests/ablate",
    "diagnose": "tests/diagnose",
    "-m": "tests/runs",
    "tracking=wandb": "tests/tracking",
    "tracking=[wandb,tensorboard]": "tests/tracking",
    "student.path=Qwen3-4B": "tests/doctor",
}


def run_here() -> list[Command]:
    """Those that are run."""
    return [each for each in of_verbs() if each.runs and not each.needs and not RUN_ELSEWHERE.keys() & {*each.words}]


def settings(command: Command) -> Iterator[list[str]]:
    """The overrides of a command; of a sweep, those of each of its runs, and of a search, of its first."""
    _, given = split_flags(command.words[2:])
    if "-m" not in command.words:
        yield given
        return
    swept = [re.sub(r"interval\(([^,]+),.*\)", r"\1", word).partition("=") for word in given]
    yield from (
        [f"{key}={value}" for (key, _, _), value in zip(swept, values, strict=True)]
        for values in product(*(value.split(",") for _, _, value in swept))
    )


def small(command: Command) -> list[str]:
    """The command's settings, and what makes them small."""
    verb, given = command.words[1], list(command.words[2:])
    chosen = {re.split("[=.]", word.lstrip("+"))[0] for word in given}
    groups = [word for group, words in GROUPS.items() if group not in chosen for word in words]
    if verb == "train" and not any("horizon" in word for word in given) and "benchmark" not in chosen:
        groups = [*groups[:-2], "benchmark=[]"]
    steps = ["run.steps=2" if "run.steps=80" in given else "run.steps=1"] if verb == "train" else []
    return [*given, *groups, *SIZES[verb], *steps]


def made_files(folder: Path) -> None:
    """What the commands' files are called, with problems of the toy task."""
    rows = [
        {**row, "question": row["prompt"], "difficulty": 6} for row in toy_rows("data.path", "toy://smoke", "train")[:4]
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "problems.parquet")
    for name in ("problems.jsonl", "a.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "b.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for block in blocks("python"):
        if block.text.startswith("# my_module.py\n"):
            (folder / "my_module.py").write_text(block.text)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> Path:
    """A folder to type commands in: files, and runs that have ended."""
    folder = tmp_path_factory.mktemp("typed")
    made_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert iwopd("train", *small(Command("", ("iwopd", "train", "run.dir=runs/a")))) == 0
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    return folder


@pytest.fixture
def typed_in(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as one test finds it."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.unit
def test_marks_are_known() -> None:
    unknown = {(command.page, need) for command in COMMANDS for need in command.needs if need not in NEEDS}
    assert not unknown
    assert {block.language for block in blocks()} <= {"bash", "console", "python"}, "another language is not collected"


@pytest.fixture(scope="module")
def studies() -> set[frozenset[str]]:
    """Those whose arms were composed, without what names their students."""
    return set()


@pytest.mark.parametrize("command", [each for each in of_verbs() if each not in run_here()], ids=str)
def test_iwopd_commands_pass_the_checks_of_their_config(command: Command, studies: set[frozenset[str]]) -> None:
    for given in settings(command):
        overrides = [word for word in given if not word.startswith(("hydra/", "hydra."))]
        config = composed(*overrides)
        if command.words[1] == "ablate" and any(
            re.match(r"ablate\.arms|weighting|.*which_way", word) for word in overrides
        ):
            config.run.dir = "runs/study"
            line = CommandLine([], overrides, lambda more: composed(*more))
            arms, seeds = study_arms(config, overrides), [1]  # of several students all are checked, one is composed
            students = study_students(config, arms, seeds, overrides)
            study = frozenset(word for word in overrides if not re.match(r"student=|ablate\.students=|run\.dir=", word))
            if study in studies:  # its arms are those of another pair, which composed: one tells of this pair
                arms = arms[:1]
            studies.add(study)
            assert study_runs(config, arms, seeds, line, students)


@pytest.mark.parametrize("command", run_here(), ids=str)
def test_iwopd_commands_run(command: Command, typed_in: Path) -> None:
    status = iwopd(command.words[1], *small(command))
    assert status == 0 or (command.words[1] == "doctor" and status == 1), "1: it says that the run would not work"


def test_other_commands() -> None:
    """Targets of make, scripts and their flags, extras of pip, and what a server is started with."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    server = (REPOSITORY / "tests" / "support" / "servers.py").read_text()
    seen = set()
    for command in COMMANDS:
        words = [word for word in command.words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        flags = [word for word in words if word.startswith("--")]
        match words:
            case ["make", *targets]:
                done = subprocess.run(
                    ["make", "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{command}: {done.stderr}"
            case ["python", "-m", "vllm.entrypoints.openai.api_server", *_]:
                if "pooling" in words:  # as the program itself says when a server gives no hidden states
                    assert FLAGS in " ".join(words), command
                    continue
                assert all(f'"{flag}"' in server for flag in flags), command
                assert "iwopd.vllm.worker.StudentWeights" in words, command
            case ["python", script, *_]:
                text = (REPOSITORY / script).read_text()
                assert all(f'"{flag}"' in text for flag in flags if flag != "--"), command
            case ["pip", "install", *what]:
                named = {
                    extra for word in what for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")
                }
                assert named <= set(extras), command
            case ["torchrun" | "srun", *_]:
                started = words[words.index("iwopd") :]
                assert started[:2] == ["iwopd", "train"], command
                composed(*started[2:])
            case ["iwopd", verb, *_]:
                assert verb in VERBS, command
                continue
            case _:
                raise AssertionError(f"{command}: of no kind that a test knows")
        seen.add(words[0])
    assert seen == {"make", "python", "pip", "torchrun", "srun"}


PROGRAMS = [block for block in blocks("python") if not block.text.startswith("# needs ")]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.page)
def test_programs_run(block: Block, smoke_models: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.page, "exec"), {"__name__": "shown"})


def test_the_reference_is_printed() -> None:
    script = REPOSITORY / "scripts" / "config_reference.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert "| `optim.lr` | `1e-05` | number, > 0 | peak learning rate |" in printed
