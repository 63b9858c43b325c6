"""Ways in which vLLM servers can fail, from a fake one."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from support.fake_server import QUICK, FakeServer, ask, make_engine
from support.records import plain_rollout
from support.running import SMALL, refused
from support.servers import Gate
from support.vllm_engines import PROMPTS

from iwopd.config import HttpConfig
from iwopd.errors import ConfigError, EngineError, NonFiniteError
from iwopd.rollout.base import Sampling
from iwopd.scoring.prompt_logprobs import likeliest_of
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.types import Prompt, Rollout, ScoredRollout, as_logprobs
from iwopd.vllm.servers import Servers


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


def test_a_refused_request_is_reported_at_once_with_the_servers_words() -> None:
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


def test_the_likeliest_tokens_of_a_servers_answer_are_ordered_by_rank() -> None:
    """The sampled token is beside them where it is none of them, and JSON has no −inf."""

    def place(*found: tuple[int, int, float]) -> dict[str, Any]:
        return {str(token): {"rank": rank, "logprob": logprob} for token, rank, logprob in found}

    beside = place((9, 40, -8.0), (5, 2, -1.5), (3, 1, -0.5))
    among = place((9, 2, -1.0), (4, 1, -0.6))
    only = place((9, 1, 0.0), (7, 2, -9999.0))
    ids, logprobs = likeliest_of([beside, among, only], [9, 9, 9], 2)
    assert ids.tolist() == [[3, 5], [4, 9], [9, 0]]
    assert logprobs == pytest.approx(numpy.array([[-0.5, -1.5], [-0.6, -1.0], [0.0, -numpy.inf]]))


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


def test_what_is_sent_is_stamped_then_and_told_as_it_comes_and_collected_once() -> None:
    gate, told = threading.Event(), list[Rollout]()

    def hold(count: int) -> None:
        if count > 2:
            gate.wait(10)

    with FakeServer(hold) as fake, make_engine(fake.url) as engine:
        engine.sync_weights(None, 3)  # type: ignore[arg-type]  the fake takes anything
        sent = engine.send(PROMPTS, Sampling(max_tokens=4), seed=1, stream=0, finished=told.append)
        limit = time.monotonic() + 10
        while len(told) < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        assert len(told) == 2, "before anybody waits for them"
        gate.set()
        engine.sync_weights(None, 4)  # type: ignore[arg-type]
        rollouts = sent.collect()
        assert {rollout.policy_version for rollout in rollouts} == {3}
        assert [rollout.prompt_id for rollout in rollouts] == [prompt.id for prompt in PROMPTS]
        assert sorted(map(id, told)) == sorted(map(id, rollouts)), "each once, as the very object"


def test_a_wait_that_is_interrupted_is_taken_up_again() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:
        sent = engine.send(PROMPTS, Sampling(max_tokens=4), seed=1, stream=0)

        def interrupted(*counts: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sent.collect(interrupted)
        assert len(sent.collect()) == len(PROMPTS) == fake.completions


def test_numbers_that_are_none_are_an_error_where_they_are_collected() -> None:
    def broken(count: int) -> tuple[int, Any]:
        return broken_completion(lambda choice: choice["logprobs"].update(token_logprobs=[float("nan")] * 4))

    with FakeServer(broken) as fake, make_engine(fake.url) as engine:
        sent = engine.send(PROMPTS, Sampling(max_tokens=4), seed=1, stream=0, finished=lambda rollout: None)
        with pytest.raises(NonFiniteError, match="NaN"):
            sent.collect()


def test_rollouts_that_are_expected_stay_so_while_others_are_scored() -> None:
    with FakeServer() as fake:
        teacher = VllmServerTeacher(Servers("scoring.urls", [fake.url], QUICK))
        first, second = plain_rollout([1, 2], [3, 4]), plain_rollout([1, 2], [5, 6])
        for rollout in (first, second):
            teacher.expect(rollout, lambda length: (0, length))
        for rollout in (first, second):
            (scored,) = teacher.score([rollout], lambda length: (0, length))
            assert scored.rollout is rollout
        assert fake.completions == 2, "each was asked for once"
        teacher.close()


def test_a_server_that_reports_the_models_own_logprobs_is_refused_where_they_are_not_sampled_from() -> None:
    with FakeServer() as fake, make_engine(fake.url) as engine:  # its log-probs are -1, of one token to choose from too
        engine.check_logprobs(Sampling(), PROMPTS[0])
        assert fake.completions == 0
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
            engine.check_logprobs(Sampling(top_p=0.9), PROMPTS[0])


def test_an_api_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(lambda count: (401, {"error": "Unauthorized"})) as fake:
        servers = Servers("rollout.urls", [fake.url], QUICK, api_key="secret")
        assert fake.headers["/v1/models"]["Authorization"] == "Bearer secret"
        with pytest.raises(EngineError) as caught:
            servers.submit({"prompt": [1]}, 1, lambda choice: None).result()
        servers.close()
    assert "secret" not in str(caught.value)


@pytest.mark.cli
def test_a_server_that_takes_too_few_tokens_is_refused(
    tmp_path: Path, smoke_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(context=16) as fake:
        settings = (f"rollout.urls=[{fake.url}]", f"run.dir={tmp_path / 'run'}")
        line = refused(capsys, "train", *SMALL, "rollout=vllm_server", *settings)
    assert "takes 16 tokens" in line
    assert "--max-model-len" in line


@pytest.mark.parametrize(("version", "changed"), [("default", False), ("3f-12", True)])
def test_a_server_whose_weights_were_changed_does_not_pass_for_its_model(version: str, changed: bool) -> None:
    with FakeServer() as server, make_engine(server.url) as engine:
        server.version = version
        engine.load_weights("m")
        assert ("/collective_rpc" in server.posted) is changed
