"""How long runs are: budgets of tokens, runs that are lengthened, and what evaluations draw."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from support.composing import composed
from support.running import SMALL, iwopd, refused, rows, weights, without_times

from iwopd.ablate.arms import Run
from iwopd.ablate.study import budgeted
from iwopd.config.stored import stored
from iwopd.evaluation.results import read_samples
from iwopd.rollout.horizon import horizon_tokens
from iwopd.runs.folder import RunFolder
from iwopd.runs.manifest import verify
from iwopd.training.resume import another_end, taken
from iwopd.training.schedule import Position

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]

PLAIN = tuple(setting for setting in SMALL if "benchmarks" not in setting)
CHEAP = (*SMALL, "eval.greedy=false", "run.samples=0", "run.keep=0")


def training(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if "train/loss" in row]


def evaluations(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if "eval/accuracy" in row]


# ---------------------------------------------------------------------------------------------- a budget of tokens

BUDGET = (
    *(*CHEAP, "run.steps=2", "run.tokens=1200", "eval.every=0", "eval.benchmarks.smoke.limit=4"),
    *("optim.schedule=linear", "optim.warmup_steps=2", "weighting=growing_horizon", "rollout.horizon_power=1"),
)


@pytest.fixture(scope="module")
def budget(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget") / "run"
    assert iwopd("train", *BUDGET, f"run.dir={folder}") == 0
    return folder


def test_a_budget_of_tokens_is_what_rate_and_horizon_go_by(budget: Path) -> None:
    config, taken = composed(*BUDGET), training(budget)
    mean = evaluations(budget)[0]["eval/response_length"]
    before = 0
    for index, row in enumerate(taken):
        progress = 0 if index == 0 else min(1, before / (1200 - before / index))
        assert row["train/progress"] == pytest.approx(progress)
        assert row["train/horizon"] == horizon_tokens(config.rollout, progress, mean)
        if index == 1:
            assert row["train/lr"] == 2e-4  # the end of the warm-up
        if index == 2:
            warm = before
        if index >= 2:
            assert row["train/lr"] == pytest.approx(2e-4 * (1 - (before - warm) / (1200 - warm)))
        before += row["tokens/generated"]
    assert len(taken) > 6, "more steps than run.steps"
    assert before >= 1200 > before - taken[-1]["tokens/generated"]
    assert taken[-1]["train/progress"] > 0.9
    assert taken[-1]["train/lr"] > 0
    assert taken[-1]["train/horizon"] == 24, "whole responses at the end"
    lines = (budget / "train.log").read_text()
    assert f"step {len(taken)}, {before / 1000:.1f} k of 1.2 k tokens  loss" in lines
    assert "/2 " not in lines


def test_with_a_budget_a_resumed_run_resumes_exactly(budget: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(budget, half)
    shutil.rmtree(half / "final")
    for checkpoint in sorted((half / "checkpoints").iterdir())[2:]:
        shutil.rmtree(checkpoint)
    assert iwopd("train", *BUDGET, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(budget / "final")
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(budget / "metrics.jsonl"))


def test_a_prefix_grows_by_tokens_too(tmp_path: Path) -> None:
    settings = (*PLAIN, "benchmark=[]", "run.steps=1", "run.tokens=600", "run.save_every=0", "weighting=prefix_mask")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    shares = [row["tokens/trained"] / row["tokens/generated"] for row in training(tmp_path / "run")]
    assert shares[0] == pytest.approx(0.3, abs=0.05)
    assert shares == sorted(shares)
    assert shares[1] < 0.8
    assert shares[-1] > 0.9


def test_all_arms_of_a_study_have_the_budget_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline goes by tokens then, too: equal progress for equal tokens."""
    assert "add ablate.match=tokens" in refused(capsys, "ablate", *CHEAP, "run.tokens=500")
    config = composed(*CHEAP, "run.tokens=500", "ablate.match=tokens")
    runs = [Run(arm, 1, Path("nowhere"), ("seed=1",), composed(*CHEAP)) for arm in ("uniform", "iw")]
    for one in budgeted(config, runs):
        assert one.overrides == ("seed=1", "run.tokens=500")
        assert one.config.run.tokens == 500


# ---------------------------------------------------------------------------------------------- another end

# The horizon is a share of the mean length that evaluations measure: one more of them must not change what follows.
LENGTHENED = (
    *(*CHEAP, "weighting=uniform", "rollout.horizon=0.95", "rollout.max_tokens=48"),
    *("optim.warmup_steps=4", "optim.lr=2e-3"),  # lengths change fast
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths") / "straight"
    assert iwopd("train", *LENGTHENED, "run.steps=7", f"run.dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 steps: it evaluates and saves after the third, which a longer one would not."""
    folder = tmp_path_factory.mktemp("lengths") / "short"
    assert iwopd("train", *LENGTHENED, "run.steps=3", f"run.dir={folder}") == 0
    return folder


@pytest.fixture
def copied(short: Path, tmp_path: Path) -> Path:
    return shutil.copytree(short, tmp_path / "run")


def test_a_lengthened_run_ends_in_the_weights_of_one_that_was_longer_from_the_start(
    copied: Path, straight: Path
) -> None:
    assert iwopd("train", *LENGTHENED, "run.steps=7", f"run.dir={copied}", "run.resume=true") == 0
    assert weights(copied / "final") == weights(straight / "final")
    found, expected = (without_times(rows(folder / "metrics.jsonl")) for folder in (copied, straight))
    assert [row["step"] for row in found if "eval/accuracy" in row and row not in expected] == [3]
    lengths = {row["eval/response_length"] for row in found if "eval/accuracy" in row and row["step"] < 4}
    assert len(lengths) == 3, "else the horizon would be the same anyway"
    ours, theirs = ([row for row in found if row["step"] != 3] for found in (found, expected))
    for row in ours + theirs:
        row.pop("train/progress", None)  # of another end
    assert ours == theirs
    assert yaml.safe_load((copied / "config.yaml").read_text())["run"]["steps"] == 7
    card = ModelCard.load(copied / "final" / "README.md").text
    assert "7, each of 8 prompts" in card
    assert "run.steps=7" in card
    assert "resume" not in card, "nobody else can resume it"
    assert verify(copied / "final") is None


def test_final_is_replaced_even_if_the_run_was_killed_just_before(copied: Path, short: Path) -> None:
    assert iwopd("train", *LENGTHENED, "run.steps=4", f"run.dir={copied}", "run.resume=true") == 0
    longer = weights(copied / "final")
    shutil.rmtree(copied / "final")
    shutil.copytree(short / "final", copied / "final")
    assert iwopd("train", *LENGTHENED, "run.steps=4", f"run.dir={copied}", "run.resume=true") == 0
    assert weights(copied / "final") == longer != weights(short / "final")


def test_a_run_may_end_earlier(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints" / "step-000003")
    assert iwopd("train", *LENGTHENED, "run.steps=2", f"run.dir={copied}", "run.resume=true") == 0
    assert weights(copied / "final") == weights(copied / "checkpoints" / "step-000002" / "model")


def test_steps_may_become_a_budget(copied: Path, short: Path) -> None:
    taken = int(sum(row["tokens/generated"] for row in training(short)))
    settings = (*LENGTHENED, "run.steps=3", f"run.tokens={taken + 1}", f"run.dir={copied}", "run.resume=true")
    assert iwopd("train", *settings) == 0
    assert len(training(copied)) == 4


def begun(folder: Path, *overrides: str, steps: int = 5, tokens: int = 1000) -> Path:
    """What a run with these settings leaves for the checks of one that resumes it."""
    with RunFolder(folder, stored(composed(*CHEAP, *overrides), "train")) as run:
        (folder / "metrics.jsonl").touch()
        for step in range(1, steps + 1):
            state = json.dumps({"step": step, "tokens": tokens * step // steps})
            run.save_checkpoint(step, lambda draft, state=state: (draft / "trainer.json").write_text(state), keep=0)
    return folder


REFUSED = {
    "linear": (["optim.schedule=linear"], ["run.steps=9"], "with run.steps=5, and by optim.schedule=linear each of"),
    "cosine": (["optim.schedule=cosine"], ["run.tokens=2000"], "with run.tokens=null, and by optim.schedule=cosine"),
    "annealed": (["weighting=prefix_mask"], ["run.steps=9"], "by weighting.scheme=prefix_mask each of its 5 steps"),
    "boosted": (["weighting=prefix_boost"], ["run.steps=9"], "weighting.scheme=prefix_boost"),
    "horizon": (["weighting=growing_horizon"], ["run.steps=9"], "rollout.horizon_end=1.5"),
    "own scheme": (["weighting=custom", "weighting.path=a:b"], ["run.steps=9"], "weighting.path=a:b (which gets"),
    "two": (["optim.schedule=linear", "weighting=prefix_mask"], ["run.steps=9"], "linear and weighting.scheme="),
    "shorter": (["optim.schedule=linear"], ["run.steps=4"], "optim.schedule=linear"),
    "budget": (["run.tokens=1000", "optim.schedule=linear"], ["run.tokens=2000"], "begun with run.tokens=1000, and by"),
    "steps behind": ([], ["run.steps=4"], "run.steps=4: 5 steps were taken already"),
    "tokens behind": (["run.tokens=1000"], ["run.tokens=999"], "run.tokens=999: 1000 tokens generated already"),
    "no effect": (["run.tokens=1000"], ["run.steps=9"], "run.tokens=1000 says when this run ends"),
    "something else": (
        [],
        ["optim.lr=1", "run.steps=9"],
        "optim.lr (there 0.0002, here 1.0), run.steps (there 5, here 9)",
    ),
    "not asked to": ([], ["run.resume=false", "run.steps=9"], "add run.resume=true"),
}


@pytest.mark.parametrize(("settings", "changed", "says"), REFUSED.values(), ids=REFUSED)
def test_an_end_that_cannot_be_another_is_refused_with_the_reason(
    settings: list[str], changed: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(tmp_path / "run", "run.steps=5", *settings)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    given = [*CHEAP, "run.steps=5", "run.resume=true", *settings, f"run.dir={folder}"]
    given = [item for item in given if item.partition("=")[0] not in {new.partition("=")[0] for new in changed}]
    assert says in refused(capsys, "train", *given, *changed)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_without_a_checkpoint_there_is_nothing_to_lengthen(
    copied: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "checkpoints")
    settings = (*LENGTHENED, "run.steps=7", f"run.dir={copied}", "run.resume=true")
    assert "has a final/ and no checkpoint" in refused(capsys, "train", *settings)
    assert (copied / "metrics.jsonl").read_bytes() == (short / "metrics.jsonl").read_bytes()


@pytest.mark.unit
def test_before_the_first_step_any_end_will_do(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", "run.steps=5", "optim.schedule=linear", steps=0)
    config = composed(*CHEAP, "run.steps=9", "optim.schedule=linear")
    RunFolder(folder, stored(config, "train"), resume=True, may_differ=another_end(config, folder)).check()


@pytest.mark.unit
def test_a_damaged_checkpoint_does_not_say_where_a_run_stands(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", steps=3, tokens=30)
    (folder / "checkpoints" / "step-000003" / "trainer.json").write_text("{")
    assert taken(folder) == Position(2, 20)


# ---------------------------------------------------------------------------------------------- evaluations' noise


def test_every_evaluation_of_a_run_draws_the_same_noise(tmp_path: Path) -> None:
    """A student that does not change answers as it did before, and as `iwopd eval` has it answer: word for word, for
    figures alone could agree by chance."""
    settings = (*SMALL, "optim.lr=1e-30", "eval.greedy=false", "eval.every=1", "run.steps=2")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    model = f"eval.model={tmp_path / 'run' / 'final'}"
    assert iwopd("eval", *settings, model, f"run.dir={tmp_path / 'eval'}") == 0
    measured = read_samples(tmp_path / "eval" / "eval" / "smoke.jsonl.zst")
    alone = {(row["prompt_id"], row["sample"]): row["response"] for row in measured}
    answers = rows(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in answers] == [0, 0, 1, 1, 2, 2]
    assert len({row["response"] for row in answers}) == 2
    for row in answers:
        assert row["response"] == alone[row["prompt_id"], row["sample"]]
