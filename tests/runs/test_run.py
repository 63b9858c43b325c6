"""Whole runs with real models: what they leave, and that they can be stopped at any moment."""

import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from support.running import SMALL, iwopd, process, refused, rows, start, wait_for_line, weights, without_times
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from iwopd.runs.manifest import verify
from iwopd.training.report import refresh

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert iwopd("train", *SMALL, f"run.dir={folder}") == 0
    return folder


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The same run as it stood after step 2, with a checkpoint there."""
    folder = tmp_path / "half"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    left = {entry.name for entry in finished.iterdir() if not entry.name.startswith(".")}
    assert left == {
        *("config.yaml", "about.json", "inputs.json", "metrics.jsonl", "samples.jsonl", "positions.jsonl", "train.log"),
        "report.html",
        *("checkpoints", "final"),
    }
    assert [entry.name for entry in sorted((finished / "checkpoints").iterdir())] == ["step-000002", "step-000004"]
    assert all(verify(entry) is None for entry in [*(finished / "checkpoints").iterdir(), finished / "final"])
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["weighting"] == {"scheme": "iw", "gamma": 0.5}


def test_the_report_is_there_from_the_first_evaluation_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def seeing(folder: Path, config: dict) -> None:
        refresh(folder, config)
        seen.extend(re.findall(r"\d of 4(?: so far|, finished)", (folder / "report.html").read_text("utf-8"))[:1])

    monkeypatch.setattr("iwopd.training.run.refresh", seeing)
    assert iwopd("train", *SMALL, "eval.greedy=false", f"run.dir={tmp_path / 'run'}") == 0
    assert seen == ["0 of 4 so far", "2 of 4 so far", "4 of 4, finished"]
    positions = rows(tmp_path / "run" / "positions.jsonl")
    assert [row["step"] for row in positions] == [1, 2, 3, 4]
    trained = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    for row, metrics in zip(positions, trained, strict=True):
        assert sum(row["tokens"]) == metrics["tokens/trained"]
        pairs = zip(row["abs_advantage"], row["tokens"], strict=True)
        mean = sum(value * count for value, count in pairs if count) / sum(row["tokens"])
        assert mean == pytest.approx(metrics["train/abs_advantage_mean"], abs=1e-4), "the sampler is the trainer here"


def test_metrics_have_the_keys_users_rely_on(finished: Path) -> None:
    found = rows(finished / "metrics.jsonl")
    training = [row for row in found if "train/loss" in row]
    evaluations = [row for row in found if "eval/accuracy" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    wanted = {
        *("step", "time", "train/loss", "train/advantage_mean", "train/abs_advantage_mean", "train/kept_tokens"),
        *("train/weight_mean", "train/weight_min", "train/weight_max", "train/reverse_kl", "train/sampler_gap_mean"),
        *("train/clip_fraction", "train/grad_norm", "train/response_length", "train/lr"),
        *("time/rollout_s", "time/score_s", "time/update_s", "tokens/generated", "tokens/scored", "tokens/trained"),
    }
    assert all(wanted <= row.keys() for row in training)
    assert all({"eval/accuracy", "eval/pass_at_k", "time/eval_s"} <= row.keys() for row in evaluations)
    first = training[0]
    assert first["train/weight_max"] == pytest.approx(1.5, abs=1e-6)
    assert 1 <= first["train/weight_min"] <= first["train/weight_mean"] <= first["train/weight_max"]
    assert first["train/sampler_gap_mean"] < 1e-4
    assert first["tokens/trained"] == first["tokens/generated"] == first["train/kept_tokens"]


def test_samples_carry_a_weight_per_token(finished: Path) -> None:
    found = rows(finished / "samples.jsonl")
    assert [row["step"] for row in found] == [0, 0, 2, 2, 4, 4]
    for row in found:
        assert len(row["weights"]) == len(row["tokens"]) == len(row["advantages"]) == len(row["teacher_logprobs"])
        assert row["weights"][0] == pytest.approx(1.5, abs=1e-4)


def test_the_final_model_loads_and_its_tokenizer_and_generation_config_too(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "final")
    tokenizer = AutoTokenizer.from_pretrained(finished / "final")
    generation = GenerationConfig.from_pretrained(finished / "final")
    assert generation.eos_token_id == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab1b.2?a:"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3
    assert weights(finished / "final") == weights(finished / "checkpoints" / "step-000004" / "model")


def test_eval_measures_what_training_measured(finished: Path, tmp_path: Path) -> None:
    model = f"eval.model={finished / 'final'}"
    assert iwopd("eval", *SMALL, model, f"run.dir={tmp_path / 'eval'}") == 0
    (measured,) = rows(tmp_path / "eval" / "metrics.jsonl")
    last = [row for row in rows(finished / "metrics.jsonl") if "eval/accuracy" in row][-1]
    for key in ("eval/accuracy", "eval/pass_at_k", "eval/greedy_accuracy", "eval/response_length"):
        assert measured[key] == last[key]
    assert (tmp_path / "eval" / "eval" / "smoke.json").exists()


def test_a_run_is_the_same_twice_and_another_seed_is_not(finished: Path, tmp_path: Path) -> None:
    assert iwopd("train", *SMALL, f"run.dir={tmp_path / 'again'}") == 0
    assert iwopd("train", *SMALL, f"run.dir={tmp_path / 'other'}", "seed=7") == 0
    assert weights(tmp_path / "again" / "final") == weights(finished / "final")
    assert weights(tmp_path / "other" / "final") != weights(finished / "final")


# ---------------------------------------------------------------------------------------------- resume


def test_a_resumed_run_ends_in_the_same_weights_and_metrics(finished: Path, half: Path) -> None:
    assert iwopd("train", *SMALL, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(finished / "final")
    for name in ("metrics.jsonl", "samples.jsonl", "positions.jsonl"):
        assert without_times(rows(half / name)) == without_times(rows(finished / name))


@pytest.mark.parametrize("moment", ["step 1", "step 3", "checkpoint"])
def test_killed_at_any_moment_a_run_resumes_exactly(finished: Path, tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "killed"
    running = start("train", *SMALL, f"run.dir={folder}")
    if moment == "checkpoint":
        wait_for_line(running, "step 2")
        drafts = folder / "checkpoints"
        while not list(drafts.glob(".draft-*")) and not list(drafts.glob("step-*")) and running.poll() is None:
            time.sleep(0.001)
    else:
        wait_for_line(running, moment)
    running.kill()
    running.communicate()
    assert iwopd("train", *SMALL, f"run.dir={folder}", "run.resume=true") == 0
    assert weights(folder / "final") == weights(finished / "final")
    assert without_times(rows(folder / "metrics.jsonl")) == without_times(rows(finished / "metrics.jsonl"))
    assert not list(folder.rglob(".draft-*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_resumes_exactly(
    finished: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "stopped"
    settings = [*SMALL, "run.save_every=0"]  # so that only the signal can have saved
    running = start("train", *settings, f"run.dir={folder}")
    wait_for_line(running, "step 1")
    running.send_signal(number)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    assert "run.resume=true" in out
    assert len(list((folder / "checkpoints").glob("step-*"))) == 1
    assert iwopd("train", *settings, f"run.dir={folder}", "run.resume=true") == 0
    assert weights(folder / "final") == weights(finished / "final")


def test_a_finished_run_stays_as_it_is_when_resumed(finished: Path) -> None:
    grows = ("train.log", "about.json")  # with each session
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file() and file.name not in grows}
    assert iwopd("train", *SMALL, f"run.dir={finished}", "run.resume=true") == 0
    after = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file() and file.name not in grows}
    assert after == before


def test_a_damaged_checkpoint_is_named_and_passed_over(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    file = folder / "checkpoints" / "step-000004" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert iwopd("train", *SMALL, f"run.dir={folder}", "run.resume=true") == 0
    assert "step-000004 is damaged" in capsys.readouterr().out
    assert weights(folder / "final") == weights(finished / "final")


def test_after_a_crash_with_a_users_own_things_in_it_a_run_resumes_exactly(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "crashed"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    shutil.copytree(folder / "checkpoints" / "step-000002", folder / "checkpoints" / "step-best")
    (folder / "config.yaml").write_bytes(b"\0" * 99)
    (folder / "about.json").write_text("")
    (folder / ".draft-thesis").mkdir()
    state = json.loads((folder / "checkpoints" / "step-best" / "trainer.json").read_text())
    os.truncate(folder / "metrics.jsonl", state["log_offsets"]["metrics"] - 9)
    assert iwopd("train", *SMALL, f"run.dir={folder}", "run.resume=true", "run.keep=1") == 0
    out = capsys.readouterr().out
    assert "config.yaml is lost or damaged; step-000002 has it" in out
    assert "bytes before the checkpoint are left" in out
    assert weights(folder / "final") == weights(finished / "final")
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"step-best", "step-000004"}
    assert (folder / ".draft-thesis").is_dir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["dir"] == str(folder)
    lost = without_times(rows(finished / "metrics.jsonl"))
    assert without_times(rows(folder / "metrics.jsonl")) == lost[:3] + lost[4:]


def test_without_a_whole_checkpoint_nothing_is_overwritten(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (half / "checkpoints" / "step-000002" / "manifest.json").unlink()
    metrics = (half / "metrics.jsonl").read_bytes()
    assert "no checkpoint is whole" in refused_run(capsys, half, "run.resume=true")
    assert (half / "metrics.jsonl").read_bytes() == metrics


def refused_run(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    return refused(capsys, "train", *SMALL, f"run.dir={folder}", *overrides)


def test_a_folder_that_holds_a_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "add run.resume=true" in refused_run(capsys, finished)


def test_a_folder_that_holds_another_config_is_refused_with_the_keys(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused_run(capsys, finished, "run.resume=true", "optim.lr=1e-4", "weighting=first30")
    for key in ("optim.lr (there 0.0002, here 0.0001)", "weighting.fraction", "weighting.gamma", "weighting.scheme"):
        assert key in line


def test_two_processes_do_not_write_to_one_folder(half: Path) -> None:
    running = start("train", *SMALL, f"run.dir={half}", "run.resume=true", "run.keep=0")
    try:
        wait_for_line(running, "resuming from")
        running.send_signal(signal.SIGSTOP)
        second = process("train", *SMALL, f"run.dir={half}", "run.resume=true")
        assert second.returncode == 2
        assert "another process" in second.stderr
    finally:
        running.kill()
        running.communicate()


def test_a_full_disk_leaves_the_last_good_checkpoint(
    half: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # less than the weights need
    try:
        line = refused_run(capsys, half, "run.resume=true")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "the last good checkpoint is step-000002" in line
    assert not list(half.rglob(".draft-*"))
    assert iwopd("train", *SMALL, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(finished / "final")


# ---------------------------------------------------------------------------------------------- other ways to train


VARIANTS = {
    "uniform": ["weighting=uniform"],
    "last30": ["weighting=last30"],
    "random30": ["weighting=random30"],
    "prefix_ratio, whole batch first": ["weighting=prefix_ratio"],
    "prefix_mask, annealed": ["weighting=prefix_mask"],
    "sampler log-probs": ["scoring.student_logprobs=sampler"],
    "reverse KL": ["loss=reverse_kl"],
    "two updates per batch": ["optim.updates_per_batch=2"],
    "several samples per prompt": ["rollout.n=2"],
    "LoRA with dropout": ["student.lora.rank=4", "student.lora.dropout=0.2"],
    "bf16 autocast, checkpointed": ["optim.autocast=true", "student.gradient_checkpointing=true"],
    "cosine with warm-up": ["optim.schedule=cosine", "optim.warmup_steps=2"],
    "processed sampling": ["rollout.temperature=0.8", "rollout.top_p=0.9", "rollout.top_k=20"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_way_to_train_resumes_exactly(overrides: list[str], tmp_path: Path) -> None:
    settings = [*SMALL, *overrides, "run.keep=0", "eval.every=0"]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert iwopd("train", *settings, f"run.dir={whole}") == 0
    shutil.copytree(whole, half)
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000004")
    assert iwopd("train", *settings, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(whole / "final")
    assert all(
        torch.isfinite(torch.tensor(row["train/loss"])) for row in rows(whole / "metrics.jsonl") if "train/loss" in row
    )
    AutoModelForCausalLM.from_pretrained(whole / "final")


def test_tokens_that_are_cut_off_are_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (*SMALL, "run.steps=2", "eval.every=0", "rollout.top_p=0.9", f"run.dir={tmp_path / 'run'}")
    assert iwopd("train", *settings) == 0
    assert capsys.readouterr().out.count("warning: rollout.top_p=0.9: the tokens that it cuts off") == 1
    assert (tmp_path / "run" / "train.log").read_text().count("rollout.top_p=0.9") == 1


def test_windows_score_and_train_fewer_tokens(finished: Path, tmp_path: Path) -> None:
    totals = {}
    for name in ("uniform", "first30", "last30"):
        assert (
            iwopd("train", *SMALL, "run.steps=1", "eval.every=0", f"weighting={name}", f"run.dir={tmp_path / name}")
            == 0
        )
        totals[name] = next(row for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row)
    assert totals["uniform"]["tokens/generated"] == totals["first30"]["tokens/generated"]
    for name in ("first30", "last30"):
        assert 0.3 <= totals[name]["tokens/trained"] / totals["uniform"]["tokens/trained"] < 0.36
    assert totals["first30"]["tokens/scored"] < totals["uniform"]["tokens/scored"]


def test_a_sweep_trains_into_folders_of_their_own(tmp_path: Path) -> None:
    assert iwopd("train", *SMALL, "run.steps=1", "eval.every=0", f"run.dir={tmp_path / 'sweep'}", "-m", "seed=1,2") == 0
    assert [(tmp_path / "sweep" / job / "final").is_dir() for job in ("0", "1")] == [True, True]
    assert weights(tmp_path / "sweep" / "0" / "final") != weights(tmp_path / "sweep" / "1" / "final")


def test_a_sweep_leaves_nothing_where_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert iwopd("train", *SMALL, "-m", "weighting.gamma=-1,-2") == 2
    assert list(tmp_path.iterdir()) == []


def test_eval_does_not_write_into_a_training_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    settings = (f"run.dir={finished}", "run.resume=true", f"eval.model={finished / 'final'}")
    assert "verb (there train, here eval)" in refused(capsys, "eval", *SMALL, *settings)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_samples_of_several_benchmarks_keep_their_own_prompts(tmp_path: Path) -> None:
    settings = (*SMALL, "run.steps=0", "benchmark=[smoke,toy]", "eval.benchmarks.toy.limit=4")
    assert iwopd("train", *settings, f"run.dir={tmp_path / 'run'}") == 0
    found = rows(tmp_path / "run" / "samples.jsonl")
    assert [row["benchmark"] for row in found] == ["smoke", "smoke", "toy", "toy"]
    assert {len(row["prompt"]) for row in found[:2]} != {len(row["prompt"]) for row in found[2:]}


def test_pruning_never_lets_damaged_checkpoints_push_out_whole_ones(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    (folder / "checkpoints" / "step-000004" / "manifest.json").unlink()
    settings = (*SMALL, f"run.dir={folder}", "run.resume=true", "run.keep=1", "run.save_every=1")
    running = start("train", *settings)
    wait_for_line(running, "step 4")
    running.kill()
    running.communicate()
    assert any(verify(entry) is None for entry in (folder / "checkpoints").glob("step-*"))
    assert iwopd("train", *settings) == 0
    assert weights(folder / "final") == weights(finished / "final")


def test_a_users_own_weighting_is_found_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def halves(given):\n    return 0.5 * given.mask\n")
    monkeypatch.chdir(tmp_path)
    settings = [*SMALL, "run.steps=1", "weighting=custom", "weighting.path=mine:halves"]
    assert iwopd("train", *settings, "run.dir=run") == 0
    first = next(row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row)
    assert (first["train/weight_min"], first["train/weight_max"]) == (0.5, 0.5)


def test_smoke_learns(tmp_path: Path) -> None:
    """The whole `smoke` experiment: the student is better after it than before."""
    done = process("train", "+experiment=smoke", f"run.dir={tmp_path / 'smoke'}")
    assert done.returncode == 0, done.stderr
    accuracy = [row["eval/accuracy"] for row in rows(tmp_path / "smoke" / "metrics.jsonl") if "eval/accuracy" in row]
    assert accuracy[-1] > accuracy[0] + 0.08
    assert "\x1b[" not in done.stdout, "a pipe gets plain lines"
    assert os.path.exists(tmp_path / "smoke" / "train.log")
