"""vLLM servers: real ones for what they compute and take over, a fake one for the ways they can fail."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_server import QUICK, FakeServer, ask, make_engine
from support.records import plain_rollout
from support.running import SMALL, iwopd, refused, rows, start, wait_for_line
from support.servers import Gate, VllmServer
from support.vllm_engines import PROMPTS, assert_logprobs_of, disturb, load_student
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from iwopd.config import HttpConfig, ParityConfig
from iwopd.errors import ConfigError, EngineError
from iwopd.models.language_model import LanguageModel
from iwopd.rollout.base import Sampling
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.training.parity import check_parity
from iwopd.types import Prompt, Rollout, ScoredRollout, as_logprobs
from iwopd.vllm.servers import Servers
from iwopd.vllm.transfer import SharedFile

CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------- ways to fail


def broken_completion(change: Callable[[dict[str, Any]], Any]) -> tuple[int, Any]:
    answer = FakeServer.completion({"prompt": [1, 2, 3], "max_tokens": 4})
    change(answer["choices"][0])
    return 200, answer


FAILURES: dict[str, Callable[[], tuple[int, Any]]] = {
    "an error": lambda: (500, {"error": {"message": "EngineDead"}}),
    "too busy": lambda: (429, {"error": {"message": "busy"}}),
    "too few log-probs": lambda: broken_completion(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
    "no log-probs": lambda: broken_completion(lambda choice: choice.update(logprobs=None)),
    "no token ids": lambda: broken_completion(lambda choice: choice.update(token_ids=None)),
    "no choices": lambda: (200, {"choices": []}),
    "no JSON object": lambda: (200, [1]),
    "aborted": lambda: broken_completion(lambda choice: choice.update(finish_reason="abort")),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failed_request_is_tried_again(failure: Callable[[], tuple[int, Any]]) -> None:
    with FakeServer(lambda count: failure() if count <= 2 else None) as fake, make_engine(fake.url) as engine:
        assert [answer.response_ids.tolist() for answer in ask(engine)] == [[7] * 4] * 4
        assert fake.completions == 6


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_server_that_only_fails_is_one_line_and_never_a_made_up_number(failure: Callable[[], Any]) -> None:
    with (
        FakeServer(lambda count: failure()) as fake,
        make_engine(fake.url) as engine,
        pytest.raises(EngineError, match=r"rollout\.urls") as caught,
    ):
        ask(engine)
    assert len(str(caught.value).splitlines()) == 1


def test_requests_go_to_the_healthy_one_of_two() -> None:
    with (
        FakeServer(lambda count: FAILURES["an error"]()) as sick,
        FakeServer() as healthy,
        make_engine(sick.url, healthy.url) as engine,
    ):
        assert len(ask(engine, n=12)) == 12
        assert healthy.completions == 12


def test_a_slow_server_times_out_and_the_request_goes_elsewhere() -> None:
    def sleep(count: int) -> None:
        time.sleep(1.5)

    settings = HttpConfig(connections=4, timeout_s=0.3, retries=2, backoff_s=0.01)
    with (
        FakeServer(sleep) as slow,
        FakeServer() as quick,
        make_engine(slow.url, quick.url, settings=settings) as engine,
    ):
        assert len(ask(engine, n=4)) == 4
        assert quick.completions == 4


def test_a_refused_request_is_told_at_once_with_the_servers_words() -> None:
    refusal = (400, {"error": {"message": "max_tokens is too large"}})
    with (
        FakeServer(lambda count: refusal) as fake,
        make_engine(fake.url) as engine,
        pytest.raises(EngineError, match="status 400: max_tokens is too large"),
    ):
        ask(engine, n=1)
    assert fake.completions == 1


def test_load_is_spread_by_outstanding_tokens() -> None:
    """One long request counts as many short ones."""
    gate = threading.Event()

    def hold(count: int) -> None:
        gate.wait(5)

    with FakeServer(hold) as first, FakeServer(hold) as second:
        settings = HttpConfig(connections=8)
        servers = Servers("rollout.urls", [first.url, second.url], settings)
        body = {"prompt": [1], "max_tokens": 1}
        futures = [servers.submit(body, tokens, lambda choice: None) for tokens in (1000, *[100] * 8)]
        limit = time.monotonic() + 5
        while first.completions + second.completions < 9 and time.monotonic() < limit:
            time.sleep(0.01)
        gate.set()
        for future in futures:
            future.result()
        servers.close()
    assert sorted((first.completions, second.completions)) == [1, 8]
    assert [server.outstanding for server in servers.servers] == [0, 0]


def test_a_dead_server_is_left_out_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer() as first, FakeServer() as second:
        gate = Gate(second.server.server_address[1])
        with make_engine(first.url, gate.url) as engine:
            engine.sync_weights(None, 1)  # type: ignore[arg-type]  the fake takes anything
            ask(engine)
            gate.shut()
            assert len(ask(engine, n=8)) == 8
            assert "is gone" in caplog.text
            assert [server.alive for server in engine.servers.servers] == [True, False]
            engine.servers.servers[1].url = second.url  # started again, and without our weights
            second.version = "default"
            before = second.completions
            assert len(ask(engine, n=8)) == 8
            assert "is back" in caplog.text
            assert second.completions > before
            assert second.version == first.version != "default"


def test_without_any_server_left_the_error_says_so() -> None:
    with FakeServer() as fake:
        gate = Gate(fake.server.server_address[1])
        with make_engine(gate.url) as engine:
            gate.shut()
            with pytest.raises(EngineError, match="no server is left of 1"):
                ask(engine)


def test_weights_of_another_run_are_noticed() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:
        engine.sync_weights(None, 3)  # type: ignore[arg-type]  the fake takes anything
        assert fake.posted[-2:] == ["/reset_prefix_cache", "/update_weight_version"]

        def meddle(rollout: Rollout) -> None:
            fake.version = "other-1"

        with pytest.raises(EngineError, match="serves weights 'other-1'"):
            engine.generate([Prompt("p", [1], "")], Sampling(max_tokens=1), seed=1, stream=0, finished=meddle)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://nowhere.invalid:8000"])
def test_an_address_without_a_server_is_one_line(address: str) -> None:
    with pytest.raises(EngineError, match=f"rollout.urls={address}: no vLLM server answers there") as caught:
        make_engine(address)
    assert len(str(caught.value).splitlines()) == 1


def test_too_few_prompt_logprobs_are_asked_for_again_and_then_an_error() -> None:
    answer = plain_rollout([1, 2, 3], [4, 5])

    def cut(count: int) -> tuple[int, Any]:
        return broken_completion(lambda choice: choice["prompt_logprobs"].pop())

    with FakeServer(lambda count: cut(count) if count == 1 else None) as fake:
        teacher = VllmServerTeacher(Servers("scoring.urls", [fake.url], QUICK))
        (scored,) = teacher.score([answer], lambda length: (1, length))
        assert scored == ScoredRollout(answer, 1, 2, as_logprobs([-5.0]))
        teacher.close()
    with FakeServer(cut) as fake:
        teacher = VllmServerTeacher(Servers("scoring.urls", [fake.url], QUICK))
        with pytest.raises(EngineError, match="2 prompt log-probs for 5 tokens"):
            teacher.score([answer], lambda length: (0, length))
        teacher.close()


def test_each_rollout_is_scored_once_with_overlap_and_without() -> None:
    answers = [plain_rollout([1, 2], [3 + index, 4], prompt_id=str(index)) for index in range(3)]
    found = {}
    for overlap in (True, False):
        with FakeServer() as fake:
            teacher = VllmServerTeacher(Servers("scoring.urls", [fake.url], QUICK), overlap)
            for answer in answers[:2]:
                teacher.expect(answer, lambda length: (0, length))
            found[overlap] = teacher.score(answers, lambda length: (0, length))
            teacher.close()
            assert fake.completions == 3
    assert found[True] == found[False]
    assert [record.teacher_logprobs.tolist() for record in found[True]] == [[-3.0, -4.0], [-4.0, -4.0], [-5.0, -4.0]]


def test_a_server_that_reports_the_models_own_logprobs_is_refused_where_they_are_not_sampled_from() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:  # its log-probs are -1, of one token to choose from too
        engine.check_logprobs(Sampling(), PROMPTS[0])
        assert fake.completions == 0
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
            engine.check_logprobs(Sampling(top_p=0.9), PROMPTS[0])


def test_an_api_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(lambda count: (401, {"error": "Unauthorized"})) as fake:
        servers = Servers("rollout.urls", [fake.url], QUICK, api_key="secret")
        assert servers._http._client.headers["Authorization"] == "Bearer secret"
        with pytest.raises(EngineError) as caught:
            servers.submit({"prompt": [1]}, 1, lambda choice: None).result()
        servers.close()
    assert "secret" not in str(caught.value)


def test_a_server_that_takes_too_few_tokens_is_refused(
    tmp_path: Path, smoke_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(context=16) as fake:
        settings = (f"rollout.urls=[{fake.url}]", f"run.dir={tmp_path / 'run'}")
        line = refused(capsys, "train", *SMALL, "rollout=vllm_server", *settings)
    assert "takes 16 tokens" in line
    assert "--max-model-len" in line


# ---------------------------------------------------------------------------------------------- real servers


@pytest.fixture(scope="module")
def servers(
    smoke_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmServer, VllmServer]]:
    """One started with the student, one with the teacher."""
    folder = tmp_path_factory.mktemp("servers")
    made = [VllmServer(smoke_models[role], folder / f"{role}.log") for role in ("student", "teacher")]
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


def test_full_vocabulary_losses_are_refused_before_anything_is_asked(
    servers: tuple[VllmServer, VllmServer], make_rollouts: Callable[..., list[Rollout]]
) -> None:
    with (
        VllmServerTeacher(Servers("scoring.urls", [servers[1].url], QUICK)) as teacher,
        pytest.raises(ValueError, match="scoring=hf"),
    ):
        teacher.score(make_rollouts(1), lambda length: (0, length), hidden=True)


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
    smoke_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server as anybody starts one, without developer mode: nothing is handed over."""
    teacher = smoke_models["teacher"]
    server = VllmServer(teacher, tmp_path / "server.log", "--served-model-name", "anything", plain=True)
    settings = (*SMALL, "eval.benchmarks.smoke.limit=16")
    served = ("rollout=vllm_server", f"rollout.urls=[{server.url}]")
    try:
        server.wait()
        assert iwopd("eval", *settings, *served, f"eval.model={teacher}", f"run.dir={tmp_path / 'served'}") == 0
        line = refused(
            capsys, "eval", *settings, *served, "eval.model=toy://smoke/student", f"run.dir={tmp_path / 'other'}"
        )
    finally:
        server.kill()
    assert iwopd("eval", *settings, f"eval.model={teacher}", f"run.dir={tmp_path / 'hf'}") == 0
    (hf,), (found,) = (rows(tmp_path / name / "metrics.jsonl") for name in ("hf", "served"))
    assert found["eval/greedy_accuracy"] == hf["eval/greedy_accuracy"]
    assert f"serves {teacher}, not " in line
    assert "VLLM_SERVER_DEV_MODE=1" in line


@pytest.mark.parametrize(("version", "changed"), [("default", False), ("3f-12", True)])
def test_a_server_whose_weights_were_changed_does_not_pass_for_its_model(version: str, changed: bool) -> None:
    with FakeServer() as server, make_engine(server.url) as engine:
        server.version = version
        engine.load_weights("m")
        assert ("/collective_rpc" in server.posted) is changed


def test_when_no_server_is_left_the_last_step_is_saved_and_the_run_goes_on_elsewhere(
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
    assert "is saved, go on with run.resume=true" in line
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) >= 2
    assert iwopd("train", *settings, f"rollout.urls=[{servers[0].url}]", "run.resume=true") == 0
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3, 4]


def test_a_server_killed_in_the_middle_is_left_out_and_the_run_goes_on(
    servers: tuple[VllmServer, VllmServer], tmp_path: Path
) -> None:
    """Last, because it ends a server. What was computed is as if there had been one all along."""
    shared = (*SMALL, "run.save_every=0", "eval.every=0", "rollout=vllm_server")
    both = f"rollout.urls=[{servers[0].url},{servers[1].url}]"
    running = start("train", *shared, both, f"run.dir={tmp_path / 'killed'}")
    wait_for_line(running, "step 2")
    servers[1].kill()
    out, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors
    assert f"server {servers[1].url} is gone" in out
    assert iwopd("train", *shared, f"rollout.urls=[{servers[0].url}]", f"run.dir={tmp_path / 'one'}") == 0
    losses = [
        [row["train/loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row]
        for name in ("killed", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
