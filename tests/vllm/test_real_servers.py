"""Real vLLM servers: what they sample and score, and that a run outlives one of them."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import forks
from support.paths import REPOSITORY
from support.running import SMALL, iwopd, refused, rows, start, wait_for_line
from support.servers import Gate, VllmServer
from support.vllm_engines import PROMPTS, assert_likeliest_of, assert_logprobs_of, disturb, load_student
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from iwopd.config import HttpConfig, ParityConfig
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.scoring.vllm_server_states import FLAGS, VllmServerStatesTeacher
from iwopd.scoring.vllm_states import LmHead
from iwopd.training.parity import check_parity
from iwopd.types import Rollout, Signal
from iwopd.vllm.servers import Servers
from iwopd.vllm.transfer import SharedFile

pytestmark = pytest.mark.vllm
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def servers(
    smoke_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmServer, VllmServer]]:
    """One that takes the student's weights, and one of the teacher as anybody starts one, without developer mode."""
    folder = tmp_path_factory.mktemp("servers")
    made = [
        VllmServer(smoke_models["student"], folder / "student.log"),
        VllmServer(smoke_models["teacher"], folder / "teacher.log", "--served-model-name", "anything", plain=True),
    ]
    try:
        for server in made:
            server.wait()
        yield made[0], made[1]
    finally:
        for server in made:
            server.kill()


@pytest.fixture(scope="module")
def engine(servers: tuple[VllmServer, VllmServer]) -> Iterator[VllmServerEngine]:
    reached = Servers("rollout.urls", [servers[0].url], HttpConfig(connections=16))
    with VllmServerEngine(reached, [2], SharedFile(reached, None, torch.float32)) as made:
        yield made


@pytest.mark.parametrize(
    "sampling",
    [Sampling(n=2, max_tokens=16), Sampling(max_tokens=12, temperature=1.5, top_p=0.8, top_k=20)],
    ids=["plain", "processed"],
)
def test_after_a_sync_a_server_answers_with_the_students_weights(
    sampling: Sampling, engine: VllmServerEngine, smoke_models: dict[str, Path]
) -> None:
    student = load_student(smoke_models["student"])
    disturb(student, 0.3)
    engine.sync_weights(student, 1)
    engine.check_logprobs(sampling, PROMPTS[0])
    rollouts = engine.generate(PROMPTS, sampling, seed=1, stream=0)
    assert_logprobs_of(student.model, rollouts, sampling)
    assert {rollout.policy_version for rollout in rollouts} == {1}
    assert check_parity(engine, student, PROMPTS, ParityConfig(), seed=0).max_gap < 1e-4
    assert engine.generate(PROMPTS, sampling, seed=1, stream=0) == rollouts or sampling.n > 1


def test_ids_the_teacher_does_not_know_are_never_sampled(engine: VllmServerEngine) -> None:
    engine.vocabulary = 60
    try:
        rollouts = engine.generate(PROMPTS, Sampling(n=2, max_tokens=8), seed=1, stream=0)
    finally:
        engine.vocabulary = None
    assert max(token for item in rollouts for token in item.response_ids) < 60


def test_a_served_teacher_scores_as_transformers_does(
    servers: tuple[VllmServer, VllmServer],
    smoke_models: dict[str, Path],
    make_rollouts: Callable[..., list[Rollout]],
) -> None:
    rollouts = make_rollouts(8, seed=4, longest=40, vocabulary=200)
    reference = HfTeacher(LanguageModel(AutoModelForCausalLM.from_pretrained(smoke_models["teacher"])), CPU)
    expected = reference.score(rollouts, lambda length: (length // 3, length))
    with VllmServerTeacher(Servers("scoring.urls", [servers[1].url], HttpConfig(connections=8))) as teacher:
        for found, wanted in zip(teacher.score(rollouts, lambda length: (length // 3, length)), expected, strict=True):
            assert_close(torch.tensor(found.teacher_logprobs), torch.tensor(wanted.teacher_logprobs), rtol=0, atol=1e-4)


def test_a_served_teacher_gives_the_likeliest_tokens_that_transformers_does(
    servers: tuple[VllmServer, VllmServer],
    smoke_models: dict[str, Path],
    make_rollouts: Callable[..., list[Rollout]],
) -> None:
    rollouts, model = make_rollouts(8, seed=4, longest=40, vocabulary=200), load_student(smoke_models["teacher"]).model
    for signal in (Signal("top_k", 1), Signal("top_k", 20)):
        reached = Servers("scoring.urls", [servers[1].url], HttpConfig(connections=8))
        with VllmServerTeacher(reached, signal=signal) as teacher:
            scored = teacher.score(rollouts, lambda length: (length // 3, length), signal=signal)
            assert_likeliest_of(model, scored, signal.k)


def test_a_run_on_the_likeliest_tokens_of_a_server(servers: tuple[VllmServer, VllmServer], tmp_path: Path) -> None:
    settings = ("run.steps=2", "eval.every=0", "run.save_every=0", "loss=forward_kl", "loss.signal=top_k")
    served = ("scoring=vllm_server", f"scoring.urls=[{servers[1].url}]", "loss.top_k=16")
    found = []
    for name, scoring in {"hf": ("loss.top_k=16",), "served": served}.items():
        assert iwopd("train", *SMALL, *settings, *scoring, f"run.dir={tmp_path / name}") == 0
        found.append([row["train/loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_server_that_gives_fewer_likeliest_tokens_is_refused_with_the_flag_it_needs(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = ("scoring=vllm_server", f"scoring.urls=[{servers[1].url}]", f"run.dir={tmp_path / 'run'}")
    line = refused(capsys, "train", *SMALL, "loss=jsd", "loss.signal=top_k", *served)
    assert "does not give the 64 likeliest tokens" in line
    assert "start it with --max-logprobs 64" in line
    assert not (tmp_path / "run").exists()


def test_a_pooling_server_gives_the_hidden_states_that_transformers_does(
    smoke_models: dict[str, Path],
    tmp_path: Path,
    make_rollouts: Callable[..., list[Rollout]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As anybody starts one, and with prompts that it computes in parts; then a run, and another signal."""
    parts = ("--enable-chunked-prefill", "--max-num-batched-tokens", "64")
    server = VllmServer(smoke_models["teacher"], tmp_path / "server.log", *FLAGS.split(), *parts, plain=True)
    settings = (*SMALL, "eval.every=0", "run.save_every=0", "run.steps=2")
    served, found = ("scoring=vllm_server", f"scoring.urls=[{server.url}]"), []
    rollouts, lm = make_rollouts(8, seed=4, longest=100, vocabulary=200), load_student(smoke_models["teacher"]).lm
    try:
        server.wait()
        reached = Servers("scoring.urls", [server.url], HttpConfig(connections=8))
        with VllmServerStatesTeacher(reached, lambda: LmHead(lm, CPU)) as teacher:
            for _ in range(2):  # the second time it has the prompts in its cache
                scored = teacher.score(rollouts, lambda length: (length // 3, length), signal=Signal("full"))
        for name, scoring in {"hf": (), "served": served}.items():
            assert iwopd("train", *settings, "loss=reverse_kl", *scoring, f"run.dir={tmp_path / name}") == 0
            found.append([row["train/loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row])
        line = refused(capsys, "train", *settings, *served, f"run.dir={tmp_path / 'sampled'}")
    finally:
        server.kill()
    expected = HfTeacher(lm, CPU).score(rollouts, lambda length: (length // 3, length), signal=Signal("full"))
    for own, wanted in zip(scored, expected, strict=True):
        assert_close(own.teacher_hidden, wanted.teacher_hidden, rtol=0, atol=1e-4)
        assert_close(torch.tensor(own.teacher_logprobs), torch.tensor(wanted.teacher_logprobs), rtol=0, atol=1e-4)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert "answers no completions, which loss.signal=sampled needs" in line


LEARNING = (
    "+experiment=smoke",
    "run.steps=10",
    "run.save_every=5",
    "run.samples=0",
    "eval.every=10",
    "eval.greedy=false",
    "optim.lr=4e-4",
    "weighting=uniform",
)


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Reverse KL by step, and accuracy before and after."""
    found = rows(folder / "metrics.jsonl")
    return (
        [row["train/reverse_kl"] for row in found if "train/reverse_kl" in row],
        [row["eval/accuracy"] for row in found if "eval/accuracy" in row],
    )


def test_learning_curves_of_hf_vllm_and_servers_are_within_noise_of_each_other(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path
) -> None:
    served = ("rollout=vllm_server", f"rollout.urls=[{servers[0].url}]")
    engines = {
        "hf": (),
        "vllm": ("rollout=vllm", "rollout.engine.kv_cache_gib=0.25"),
        "vllm_server": (*served, "scoring=vllm_server", f"scoring.urls=[{servers[1].url}]"),
    }
    curves = {}
    for name, choice in engines.items():
        assert iwopd("train", *LEARNING, *choice, f"run.dir={tmp_path / name}") == 0
        curves[name] = curve(tmp_path / name)
    for name, (divergence, accuracy) in curves.items():
        reference_divergence, reference_accuracy = curves["hf"]
        assert accuracy[-1] > accuracy[0] + 0.08, f"{name} did not learn: {curves}"
        # Accuracy of 128 problems × 2 samples has a standard error of 0.04; means of KL over 5 × 64 rollouts of 5 %.
        assert accuracy[-1] == pytest.approx(reference_accuracy[-1], abs=0.16), curves
        for half in (slice(0, 5), slice(5, 10)):
            mean, wanted = (sum(values[half]) / 5 for values in (divergence, reference_divergence))
            assert mean == pytest.approx(wanted, rel=0.2), curves


def test_eval_of_served_weights(servers: tuple[VllmServer, VllmServer], tmp_path: Path) -> None:
    """The server of the student measures the teacher, whose weights it is given."""
    settings = (*SMALL, "eval.model=toy://smoke/teacher", "eval.benchmarks.smoke.limit=16")
    assert iwopd("eval", *settings, f"run.dir={tmp_path / 'hf'}") == 0
    served = ("rollout=vllm_server", f"rollout.urls=[{servers[0].url}]")
    assert iwopd("eval", *settings, *served, f"run.dir={tmp_path / 'served'}") == 0
    (hf,), (found,) = (rows(tmp_path / name / "metrics.jsonl") for name in ("hf", "served"))
    assert found["eval/greedy_accuracy"] == hf["eval/greedy_accuracy"]


def test_eval_of_the_model_that_a_plain_server_serves(
    servers: tuple[VllmServer, VllmServer],
    smoke_models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is handed over."""
    teacher = smoke_models["teacher"]
    settings = (*SMALL, "eval.benchmarks.smoke.limit=16")
    served = ("rollout=vllm_server", f"rollout.urls=[{servers[1].url}]")
    assert iwopd("eval", *settings, *served, f"eval.model={teacher}", f"run.dir={tmp_path / 'served'}") == 0
    line = refused(
        capsys, "eval", *settings, *served, "eval.model=toy://smoke/student", f"run.dir={tmp_path / 'other'}"
    )
    assert iwopd("eval", *settings, f"eval.model={teacher}", f"run.dir={tmp_path / 'hf'}") == 0
    (hf,), (found,) = (rows(tmp_path / name / "metrics.jsonl") for name in ("hf", "served"))
    assert found["eval/greedy_accuracy"] == hf["eval/greedy_accuracy"]
    assert f"serves {teacher}, not " in line
    assert "VLLM_SERVER_DEV_MODE=1" in line


def test_when_no_server_is_left_the_last_step_is_saved_and_the_run_resumes_elsewhere(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path
) -> None:
    gate = Gate(servers[0].port)
    settings = (*SMALL, "run.save_every=0", "eval.every=0", "rollout=vllm_server", f"run.dir={tmp_path / 'run'}")
    running = start("train", *settings, f"rollout.urls=[{gate.url}]")
    wait_for_line(running, "step 2")
    gate.shut()
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 2, errors
    (line,) = (line for line in errors.splitlines() if line.startswith("iwopd: "))
    assert "no server is left of 1" in line
    assert "is saved, resume with run.resume=true" in line
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) >= 2
    assert iwopd("train", *settings, f"rollout.urls=[{servers[0].url}]", "run.resume=true") == 0
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3, 4]


def test_the_benchmark_of_what_overlaps_runs(
    servers: tuple[VllmServer, VllmServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [server.url for server in servers]
    if forks.POSSIBLE:
        monkeypatch.setattr(subprocess, "Popen", forks.Popen)
    monkeypatch.setattr(sys, "argv", ["bench_ahead.py", "--quick", "--servers", *urls])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "scripts" / "bench_ahead.py"), run_name="__main__")
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    sides = {**found["ahead"], **found["overlap"]}
    assert {side: row["train/staleness"] for side, row in sides.items()} == {
        side: float(side.endswith("ahead=1")) for side in ("ahead=0", "ahead=1", *found["overlap"])
    }
    assert all(row["step"] > 0 for row in sides.values())


def test_a_server_that_ends_in_the_middle_is_left_out_and_the_run_continues(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path
) -> None:
    """What was computed is as if there had been one all along."""
    gate = Gate(servers[0].port)
    shared = (*SMALL, "run.save_every=0", "eval.every=0", "rollout=vllm_server")
    both = f"rollout.urls=[{servers[0].url},{gate.url}]"
    running = start("train", *shared, both, f"run.dir={tmp_path / 'killed'}")
    wait_for_line(running, "step 2")
    gate.shut()
    out, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors
    assert f"server {gate.url} is gone" in out
    assert iwopd("train", *shared, f"rollout.urls=[{servers[0].url}]", f"run.dir={tmp_path / 'one'}") == 0
    losses = [
        [row["train/loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row]
        for name in ("killed", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_several_processes_sample_and_score_by_servers_that_one_speaks_to(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path
) -> None:
    """Last, because it kills one of them."""
    two = (*SMALL, "parallel=fsdp", "parallel.processes=2", "eval.every=0", "run.save_every=0", "run.steps=500")
    served = ("rollout=vllm_server", "rollout.ahead=1", f"rollout.urls=[{servers[0].url}]", "scoring=vllm_server")
    running = start("train", *two, *served, f"scoring.urls=[{servers[1].url}]", f"run.dir={tmp_path / 'run'}")
    wait_for_line(running, "step 2")
    servers[0].kill()
    out, errors = running.communicate(timeout=100)
    assert running.returncode == 2, out + errors
    assert errors.count("\n") == 1
    assert "no server is left of 1" in errors
    assert "is saved, resume with run.resume=true" in errors
    found = [row for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert len(found) >= 2
    assert max(row["sync/parity_max_gap"] for row in found if "sync/parity_max_gap" in row) < 1e-4
    assert [row["train/staleness"] for row in found] == [0, *[1] * (len(found) - 1)]
    assert all(abs(row["train/importance_ratio_mean"] - 1) < 0.05 for row in found)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(saved.name[5:]) == found[-1]["step"]
