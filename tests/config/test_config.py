"""Every preset composes and validates; every wrong value is refused in one line."""

import dataclasses
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support.composing import REQUIRED, composed
from support.running import process, refused

from iwopd.cli import VERBS
from iwopd.config import Config
from iwopd.config.checks import warnings
from iwopd.errors import ConfigError
from iwopd.launch import config_folder
from iwopd.launch.overrides import grammar_advice, home_quoted

PRESETS = sorted(
    (file.parent.name, file.stem) for file in config_folder().glob("*/*.yaml") if file.parent.name != "experiment"
)
EXPERIMENTS = sorted(file.stem for file in (config_folder() / "experiment").glob("*.yaml"))


@pytest.mark.process
@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_every_preset_composes(group: str, name: str) -> None:
    prefix = "+" if group == "debug" else ""
    composed(f"{prefix}{group}={name}", *REQUIRED.get((group, name), []))


@pytest.mark.process
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    composed(f"+experiment={name}", *REQUIRED.get(("experiment", name), []))


def test_the_default_is_the_toy_experiment() -> None:
    assert composed() == composed("+experiment=toy")


def test_the_weightings_are_those_of_the_design() -> None:
    assert {name for group, name in PRESETS if group == "weighting"} >= {
        *("uniform", "first30", "last30", "middle30", "random30", "iw", "iw_reversed", "iw_signed", "iw_surrogate"),
        *("prefix_ratio", "prefix_boost", "prefix_mask", "custom"),
        *("first30_horizon", "growing_horizon"),
    }


def test_schema_defaults_are_the_papers() -> None:
    """paper.md: the method's constants and the released run's settings."""
    config = Config(
        rollout=composed().rollout.__class__(), scoring=composed().scoring, weighting=composed("weighting=iw").weighting
    )
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.dual_clip, config.loss.importance_cap) == (
        0.2,
        0.2,
        3.0,
        5.0,
    )
    assert (config.optim.lr, config.optim.schedule, config.optim.warmup_steps) == (1e-5, "constant", 0)
    assert (config.data.batch_size, config.data.max_prompt_tokens, config.rollout.max_tokens) == (1024, 2048, 16384)
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.n, config.seed) == (1.0, 1.0, 1, 42)
    assert config.weighting.gamma == 0.5  # type: ignore[attr-defined]  # iw's schema has it
    assert composed("weighting=first30").weighting.fraction == 0.3  # type: ignore[attr-defined]  # window's has it


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        composed("weighting.gamma=-1", "optim.lr=0", "loss.normalize=none")
    assert [problem.split("=")[0] for problem in caught.value.problems] == [
        "weighting.gamma",
        "loss.normalize",
        "optim.lr",
    ]


WRONG = [
    ("weighting=iww", "weighting=iww", "did you mean iw?"),
    ("weightng=iw", "weightng=iw", "did you mean weighting?"),
    ("+experiment=smok", "experiment=smok", "did you mean smoke?"),
    ("experiment=smoke", "experiment=smoke", "write +experiment=smoke"),
    ("weighting.gama=1", "weighting.gama", "did you mean weighting.gamma?"),
    ("+weighting.gama=1", "weighting.gama", "did you mean weighting.gamma?"),
    ("+foo=1", "foo", "no such key"),
    ("weighting.gamma=-1", "weighting.gamma=-1", "at least 0"),
    ("weighting.gamma=abc", "weighting.gamma=abc", "not a number"),
    ("weighting.gamma=nan", "weighting.gamma=nan", "at least 0"),
    ("weighting.fraction=0.3", "weighting.fraction=0.3", "no such key; weighting has scheme, gamma"),
    ("weighting=first30 weighting.fraction=0", "weighting.fraction=0", "above 0"),
    ("weighting=first30 weighting.fraction=1.5", "weighting.fraction=1.5", "at most 1"),
    ("weighting=first30 weighting.side=front", "weighting.side=front", "choose one of first, last, middle, random"),
    ("weighting=first30 weighting.scheme=iw", "weighting.scheme=iw", "weighting=NAME"),
    ("weighting=custom", "weighting.path", "not set"),
    ("weighting=iw,uniform", "weighting=iw,uniform", "add -m"),
    ("eval.k=3 eval.n=2", "eval.k=3", "larger than eval.n=2"),
    ("optim.updates_per_batch=5", "optim.updates_per_batch=5", "does not divide data.batch_size=64"),
    ("optim.betas=[0.9]", "optim.betas=[0.9]", "two numbers"),
    ("run.device=gpu", "run.device=gpu", "use auto, cpu, cuda"),
    ("run.steps=1.5", "run.steps=1.5", "not a whole number"),
    ("run.resume=true", "run.resume=true", "run.dir=PATH"),
    ("rollout.temperature=0", "rollout.temperature=0", "above 0"),
    ("loss=reverse_kl scoring.student_logprobs=sampler", "scoring.student_logprobs=sampler", "use"),
    ("rollout.temperature=0.7 loss.importance_cap=null", "rollout.temperature=0.7", "set loss.importance_cap=5.0"),
    ("rollout.top_p=0.9 loss.importance_cap=null", "rollout.top_p=0.9", "top_p and top_k only in part"),
    ("student=hf", "student.path", "not set"),
    ("seed=${nope}", "seed", "not found"),
    ("run.device=cuda:01", "run.device=cuda:01", "use auto, cpu, cuda"),
    ("seed=99999999999999999999", "seed=99999999999999999999", "at most"),
    ("--bogus", "--bogus", "unrecognized"),
    ("--cfg nonsense", "nonsense", "choose from"),
    ("weighting.gamma=[1", "weighting.gamma=[1", "--help"),
    ("optim.lr=1e-4 seed", "iwopd: seed: not", "write KEY=VALUE"),
    ("optim.lr=1e-4 run.name=a;b seed=3", "iwopd: run.name=a;b: not", "quote the value for it: 'run.name=\"a;b\"'"),
    ("optim.lr=1e-4 =3", "iwopd: =3: ", "--help"),
    ("optim.lr=1e-4 é=1", "iwopd: é=1: ", "no key"),
    ("run.dir=~nosuchuser/x", "run.dir=~nosuchuser/x", "no user nosuchuser here; write the folder out"),
    ("run.date=tomorrow", "run.date=tomorrow", "write e.g. 2026-01-31"),
    ("tracking=wandb tracking.project=a/b", "tracking.project=a/b", "wandb allows no / in"),
    ("tracking=wandb tracking.project=" + "x" * 129, "tracking.project=xxx", "1 to 128 characters"),
]


@pytest.mark.cli
@pytest.mark.parametrize(("overrides", "names", "says"), WRONG, ids=[case[0] for case in WRONG])
def test_a_mistake_is_one_line_with_key_value_and_fix(
    overrides: str, names: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", *overrides.split())
    assert names in line
    assert says in line


CHANGED = ["rollout.temperature=0.7", "rollout.top_p=0.9", "rollout.top_k=20"]


def test_a_loss_over_the_vocabulary_needs_no_correction_of_what_was_sampled() -> None:
    config = composed("loss=reverse_kl", "loss.importance_cap=null", *CHANGED)
    assert config.loss.over_vocabulary
    assert warnings(config) == []


@pytest.mark.parametrize("setting", CHANGED[1:])
def test_what_the_correction_cannot_make_good_is_warned_of(setting: str) -> None:
    (line,) = warnings(composed(setting))
    assert line.startswith(f"{setting}: the tokens that it cuts off are never sampled")
    assert warnings(composed(CHANGED[0])) == warnings(composed()) == []


@given(st.text(alphabet="ab 1\"'\\$(){}[],:=~é数#;\n", min_size=1, max_size=8))
def test_what_advice_says_to_type_sets_the_value_that_was_meant(value: str) -> None:
    """As a shell would take it; texts that OmegaConf reads as interpolations aside."""
    assume("${" not in value)
    advice = grammar_advice(f"run.name={value}").partition("for it: ")[2]
    (typed_in,) = shlex.split(advice)
    parsed = OverridesParser.create().parse_override(typed_in)
    assert (parsed.key_or_group, parsed.value()) == ("run.name", value)


@pytest.mark.cli
def test_a_value_with_line_breaks_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.name=a\\nb(" in refused(capsys, "train", "optim.lr=1e-4", "run.name=a\nb(")


def path_settings(section: Any, prefix: str = "") -> Iterator[str]:
    """Settings whose names or meanings say that they are paths."""
    for entry in dataclasses.fields(section):
        value, text = getattr(section, entry.name), entry.metadata.get("text", "")
        if dataclasses.is_dataclass(value):
            yield from path_settings(value, f"{prefix}{entry.name}.")
        elif re.search(r"\b(folder|file|training run)\b", text):
            yield prefix + entry.name


def test_every_path_may_start_with_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    servers = ("rollout=vllm_server", "rollout.urls=[http://localhost:8000]")
    keys = [*path_settings(composed(*servers)), "eval.benchmarks.toy.path"]
    assert {"run.dir", "student.path", "teacher.path", "base.path", "data.path", "eval.model", "diagnose.run"} < {*keys}
    assert {"push.run", "push.folder", "doctor.json", "rollout.sync_dir"} < {*keys}
    keys = [key for key in keys if key not in ("run.resume", "rollout.sync")]
    made = composed(*servers, *(f"{key}='~/x'" for key in [*keys, "+teachers.b.path"]))
    for key in [*keys, "teachers.b.path"]:
        found: Any = made
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert found == "/home/me/x", key
    mixed = composed("data.path=null", "+data.sources.a.path='~/x'", "rollout=vllm", "+rollout.engine.args.y='~/y'")
    assert composed("ablate.students=[a,'~/x']").ablate.students == ["a", "/home/me/x"]
    assert mixed.data.sources["a"].path == "/home/me/x"
    assert mixed.rollout.engine.args == {"y": "/home/me/y"}  # type: ignore[attr-defined]  # vLLM's schema has it
    assert home_quoted("run.dir=~/my runs/a") == "run.dir='~/my runs/a'"
    assert home_quoted("~tracking") == "~tracking"


@pytest.mark.cli
def test_eval_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "eval.model" in refused(capsys, "eval")


@pytest.mark.process
def test_a_config_error_comes_before_torch(tmp_path: Path) -> None:
    for heavy in ("torch", "transformers", "datasets"):
        (tmp_path / f"{heavy}.py").write_text(f"raise RuntimeError('{heavy} was imported')")
    for arguments in (("train", "weighting.gamma=-1"), ("train", "student.path=/none"), ("eval",)):
        done = process(*arguments, cwd=tmp_path, fresh=True, PYTHONPATH=str(tmp_path))
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("iwopd: ")
    assert {entry.suffix for entry in tmp_path.iterdir()} == {".py"}, "something was written"


@pytest.mark.process
def test_help_lists_the_verbs_without_hydra_or_torch() -> None:
    code = "import sys; from iwopd.cli import main; main(); print({'torch', 'hydra', 'omegaconf'} & set(sys.modules))"
    for arguments in ([], ["--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert "train" in done.stdout
        assert "eval" in done.stdout
        assert done.stdout.endswith("set()\n")


@pytest.mark.process
def test_an_unknown_verb_gets_its_near_match() -> None:
    done = process("trian")
    assert (done.returncode, done.stderr) == (
        2,
        f"iwopd: trian: no such verb; did you mean train? use one of {', '.join(VERBS)}\n",
    )


@pytest.mark.process
def test_cfg_job_prints_the_composed_config() -> None:
    done = process("eval", "+experiment=smoke", "weighting=last30", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert (config.weighting.side, config.data.path) == ("last", "toy://smoke")


@pytest.mark.process
def test_a_users_own_config_folder_adds_presets(tmp_path: Path) -> None:
    (tmp_path / "weighting").mkdir()
    (tmp_path / "weighting" / "strong.yaml").write_text(
        "defaults: [/schema/weighting/iw@_here_]\nscheme: iw\ngamma: 2.0\n"
    )
    done = process("train", "--config-dir", str(tmp_path), "weighting=strong", "--cfg", "job")
    assert OmegaConf.create(done.stdout).weighting.gamma == 2.0


KEYS = [
    "seed", "run.steps", "run.dir", "run.keep", "student.path", "student.dtype", "student.lora.rank", "teacher.path",
    "data.batch_size", "data.overlong", "rollout.n", "rollout.top_p", "rollout", "scoring", "weighting",
    "weighting.gamma", "weighting.fraction", "weighting.side", "weighting.alpha", "loss", "loss.kind", "loss.clip_low",
    "optim.lr", "optim.betas", "optim", "eval.k", "eval.n", "eval.benchmarks", "benchmark", "tracking", "experiment",
    "hydra.run.dir", "hydra/launcher", "nonsense", "a.b.c", "",
]  # fmt: skip
VALUES = [
    "0", "1", "-1", "0.3", "1e-5", "1e400", "nan", "inf", "true", "null", "???", "iw", "first30", "hf", "toy", "smoke",
    "[1,2]", "[toy]", "{a:1}", "{a:", "[", "'", '"x', "${seed}", "${nope}", "${oc.env:NOPE}", "a b", "ünï", "$", "=",
    "1,2", "range(1,3)", "", "..", "/", "None",
]  # fmt: skip


@pytest.mark.process
def test_two_hundred_random_command_lines_never_end_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Composing and checking only: the verb itself is replaced, so what passes would go on to train."""
    from support import running

    import iwopd.commands.train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(iwopd.commands.train, "run", lambda config: None)
    rng = random.Random(0)
    statuses = set()
    for _ in range(200):
        line = [
            rng.choice(["", "", "", "+", "++", "~"]) + rng.choice(KEYS) + rng.choice(["=", "=", "=", "=", ""]) + value
            for value in rng.choices(VALUES, k=rng.randint(1, 3))
        ]
        status = running.iwopd("train", *line)
        errors = capsys.readouterr().err
        assert status in (0, 2), line
        assert "Traceback" not in errors, line
        assert (status == 0) == (errors == ""), (line, errors)
        statuses.add(status)
    assert statuses == {0, 2}
    assert os.listdir(tmp_path) == []


@pytest.mark.process
@pytest.mark.parametrize("module", sorted({module for module, _ in VERBS.values()}))
def test_a_command_is_imported_without_torch(module: str) -> None:
    """What it checks first must not wait for it."""
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'datasets', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
