"""A pooling server as a teacher: what is made of its hidden states, and which servers are refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_server import QUICK, FakeServer
from support.running import SMALL, iwopd, refused, rows
from support.vllm_engines import load_student
from torch import Tensor
from torch.testing import assert_close

from iwopd.errors import EngineError
from iwopd.models.language_model import LanguageModel
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.scoring.vllm_server_states import VllmServerStatesTeacher
from iwopd.scoring.vllm_states import LmHead
from iwopd.types import Rollout, Signal
from iwopd.vllm.servers import Servers

CPU = torch.device("cpu")
SIGNALS = (Signal(), Signal("top_k", 5), Signal("full"))
States = Callable[[list[int]], Tensor]


@pytest.fixture(scope="module")
def lm(smoke_models: dict[str, Path]) -> LanguageModel:
    return load_student(smoke_models["teacher"]).lm


@pytest.fixture(scope="module")
def states(lm: LanguageModel) -> States:
    """What a server of the teacher gives."""

    @torch.no_grad()
    def made(ids: list[int]) -> Tensor:
        return lm.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]

    return made


@pytest.fixture
def fake(states: States) -> Iterator[FakeServer]:
    with FakeServer(context=256) as server:
        server.states = states
        yield server


def teacher_of(lm: LanguageModel, *fakes: FakeServer, overlap: bool = True) -> VllmServerStatesTeacher:
    return VllmServerStatesTeacher(
        Servers("scoring.urls", [each.url for each in fakes], QUICK), lambda: LmHead(lm, CPU), overlap
    )


def last_third(length: int) -> tuple[int, int]:
    return 2 * length // 3, length


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.kind)
def test_its_records_are_those_of_transformers(
    signal: Signal, fake: FakeServer, lm: LanguageModel, make_rollouts: Callable[..., list[Rollout]]
) -> None:
    rollouts = make_rollouts(6, seed=3, longest=30, vocabulary=60)
    expected = HfTeacher(lm, CPU).score(rollouts, last_third, signal=signal)
    with teacher_of(lm, fake) as teacher:
        teacher.expect(rollouts[0], last_third, signal)
        found = teacher.score(rollouts, last_third, signal=signal)
    assert fake.completions == 6
    assert {len(body["input"]) for body in fake.bodies} == {
        len(each.prompt_ids) + len(each.response_ids) - 1 for each in rollouts
    }
    for own, wanted in zip(found, expected, strict=True):
        assert (own.rollout, own.start, own.stop) == (wanted.rollout, wanted.start, wanted.stop)
        for name in ("teacher_logprobs", "teacher_topk_ids", "teacher_topk_logprobs", "teacher_hidden"):
            one, other = getattr(own, name), getattr(wanted, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=1e-4)
        if own.teacher_hidden is not None:
            assert own.teacher_hidden.untyped_storage().nbytes() == 4 * own.teacher_hidden.numel()


def test_states_of_16_bits_are_sent_as_such(lm: LanguageModel, fake: FakeServer, make_rollouts: Any) -> None:
    half = LmHead(lm, CPU)
    half.matrix.to(torch.bfloat16)
    with VllmServerStatesTeacher(Servers("scoring.urls", [fake.url], QUICK), lambda: half) as teacher:
        (found,) = teacher.score(make_rollouts(1), last_third, signal=Signal("full"))
    assert found.teacher_hidden is not None
    assert found.teacher_hidden.dtype == torch.bfloat16
    assert {body["embed_dtype"] for body in fake.bodies} == {"bfloat16"}


@pytest.mark.parametrize("broken", ["status", "cut off", "a vector", "no shape"])
def test_a_bad_answer_is_asked_for_again(
    broken: str, fake: FakeServer, lm: LanguageModel, make_rollouts: Callable[..., list[Rollout]]
) -> None:
    rollouts = make_rollouts(2, seed=3, vocabulary=60)

    def misbehave(count: int) -> tuple[int, dict[str, str], bytes] | None:
        status, headers, data = fake.pooling(fake.bodies[-1])
        if count > 1:
            return None
        match broken:
            case "status":
                return 500, headers, data
            case "cut off":
                return status, headers, data[:-4]
            case "a vector":
                return status, {"metadata": '{"data": [{"embed_dtype": "float32", "shape": [48]}]}'}, data[:192]
            case _:
                return status, {}, data

    fake.misbehave_pooling = misbehave
    with teacher_of(lm, fake, overlap=False) as teacher:
        found = teacher.score(rollouts, last_third, signal=Signal("full"))
    assert fake.completions == 3
    assert len(found) == 2


def test_a_server_that_is_gone_is_left_out(fake: FakeServer, lm: LanguageModel, make_rollouts: Any) -> None:
    with FakeServer() as other:
        other.states = fake.states
        with teacher_of(lm, fake, other) as teacher:
            other.stop()
            assert len(teacher.score(make_rollouts(4), last_third, signal=Signal("full"))) == 4
            assert [each.alive for each in teacher.servers.servers] == [True, False]


REFUSED: dict[str, tuple[Callable[[States], States | None], str]] = {
    "of completions": (lambda states: None, "status 404: Not Found"),
    "normalised": (lambda states: lambda ids: states(ids) / states(ids).norm(dim=-1, keepdim=True), "normalised"),
    "narrow": (lambda states: lambda ids: states(ids)[:, :32], "of width 32, and the teacher's have 48"),
    "one per prompt": (lambda states: lambda ids: states(ids)[-1], r"of shape \[48\] for 12 tokens"),
    "without the first": (lambda states: lambda ids: states(ids)[1:], r"of shape \[11, 48\] for 12 tokens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_server_without_the_teachers_states_is_one_line_with_the_flags_it_needs(
    kind: str, fake: FakeServer, states: States, lm: LanguageModel
) -> None:
    change, says = REFUSED[kind]
    fake.states = change(states)
    with pytest.raises(EngineError, match=says) as caught:
        teacher_of(lm, fake)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"scoring.urls={fake.url}: ")
    assert "--runner pooling --convert embed --pooler-config.task token_embed" in line


def test_a_pooling_server_is_refused_where_log_probs_are_wanted(fake: FakeServer) -> None:
    with pytest.raises(EngineError, match=r"answers no completions, .* start it without --runner pooling"):
        VllmServerTeacher(Servers("scoring.urls", [fake.url], QUICK))


def test_servers_of_different_weights_are_refused(fake: FakeServer, states: States, lm: LanguageModel) -> None:
    with FakeServer() as other:
        other.states = lambda ids: -states(ids)
        with pytest.raises(EngineError, match=f"{other.url}: scores a fixed prompt .* it serves other weights"):
            teacher_of(lm, fake, other)


@pytest.mark.process
def test_a_run_is_that_of_a_teacher_in_transformers(fake: FakeServer, smoke_models: Any, tmp_path: Path) -> None:
    """Of two processes each needs the head."""
    fake.root = str(smoke_models["teacher"])
    settings = (*SMALL, "loss=reverse_kl", "eval.every=0", "run.save_every=0", "run.steps=2")
    served = ("scoring=vllm_server", f"scoring.urls=[{fake.url}]")
    choices = {"hf": (), "two": (*served, "parallel=fsdp", "parallel.processes=2")}
    found = {}
    for name, choice in choices.items():
        assert iwopd("train", *settings, *choice, f"run.dir={tmp_path / name}") == 0
        found[name] = [row["train/loss"] for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row]
    assert len(found["hf"]) == 2
    assert found["two"] == pytest.approx(found["hf"], rel=1e-4)


@pytest.mark.cli
def test_a_run_says_so_before_it_makes_a_folder(
    smoke_models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(context=256) as fake:
        fake.root = str(smoke_models["teacher"])
        served = ("scoring=vllm_server", f"scoring.urls=[{fake.url}]", "loss=jsd", f"run.dir={tmp_path / 'run'}")
        assert "--runner pooling" in refused(capsys, "train", *SMALL, *served)
    assert not (tmp_path / "run").exists()
