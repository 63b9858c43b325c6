"""vLLM in this process, for real: what it samples, scores and takes over, and that it leaves nothing behind."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.running import SMALL, iwopd, process, refused, rows, start, wait_for_line, weights, without_times
from support.vllm_engines import PROMPTS, assert_likeliest_of, assert_logprobs_of, disturb, load_student
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from iwopd.config import ParityConfig, VllmEngineConfig
from iwopd.errors import EngineError
from iwopd.machine import runtime
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.numerics import window_bounds
from iwopd.rollout.base import Sampling
from iwopd.rollout.vllm import WORKER, VllmEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.prompted import PromptedTeacher
from iwopd.scoring.vllm import VllmTeacher
from iwopd.scoring.vllm_states import LmHead, VllmStatesTeacher
from iwopd.training.parity import check_parity
from iwopd.types import Prompt, Rollout, Signal
from iwopd.vllm import in_process, worker
from iwopd.vllm.in_process import InProcess, Settings

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
VLLM_SMALL = (*SMALL, "rollout=vllm", "rollout.engine.kv_cache_gib=0.25")


def start_engine(folder: Path, log_file: Path, **settings: Any) -> VllmEngine:
    """On a CPU vLLM caches prefixes in blocks of 128 tokens; smaller ones have the prompts here fill some."""
    given = Settings(str(folder), 256, "float32", VllmEngineConfig(kv_cache_gib=0.25), whole_prompts=True, **settings)
    vllm = InProcess(
        "rollout=vllm", given, log_file, worker_extension_cls=WORKER, logprobs_mode="processed_logprobs", block_size=32
    )
    return VllmEngine(vllm, [2])


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """What vLLM reads when it is imported, as `runtime.prepare` sets it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runtime.VLLM.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def folder(smoke_models: dict[str, Path]) -> Path:
    return smoke_models["student"]


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """While it is open all others of this process stay open, and their end is this one's."""
    made = start_engine(folder, tmp_path_factory.mktemp("engine") / "vllm.log")
    yield made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *generation: 0)  # of vLLM, once for each engine: a second of time
        made.close()


@pytest.fixture
def student(folder: Path, engine: VllmEngine) -> Iterator[Student]:
    """The student; the engine has its first weights again afterwards."""
    yield load_student(folder)
    engine.sync_weights(load_student(folder), 0)


# ---------------------------------------------------------------------------------------------- what it samples


def test_sampler_logprobs_are_the_models(engine: VllmEngine, folder: Path) -> None:
    sampling = Sampling(n=3, max_tokens=20)
    rollouts = engine.generate(PROMPTS, sampling, seed=1, stream=0)
    assert [(item.prompt_id, item.sample) for item in rollouts] == [(p.id, s) for p in PROMPTS for s in range(3)]
    assert_logprobs_of(AutoModelForCausalLM.from_pretrained(folder), rollouts, sampling)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=12, temperature=0.6),
        Sampling(max_tokens=12, top_p=0.7),
        Sampling(max_tokens=12, top_k=3),
        Sampling(max_tokens=12, temperature=1.5, top_p=0.8, top_k=20),
        Sampling(max_tokens=12, temperature=0.0),
    ],
    ids=str,
)
def test_sampler_logprobs_are_of_the_distribution_sampled_from(
    sampling: Sampling, engine: VllmEngine, folder: Path
) -> None:
    rollouts = engine.generate(PROMPTS, sampling, seed=1, stream=0)
    assert_logprobs_of(AutoModelForCausalLM.from_pretrained(folder), rollouts, sampling)


def test_an_answer_ends_with_its_end_token_or_is_cut(engine: VllmEngine, folder: Path) -> None:
    problem = "ab1b.2?a:"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem}], add_generation_prompt=True, return_dict=False
    )
    engine.stop_ids = [tokenizer.eos_token_id]
    rollouts = engine.generate([Prompt("p", ids, "")], Sampling(n=8, max_tokens=60), seed=1, stream=0)
    stopped = [item for item in rollouts if item.finish_reason == "stop"]
    assert stopped
    assert all(item.response_ids[-1] == tokenizer.eos_token_id for item in stopped)
    cut = engine.generate([Prompt("p", ids, "")], Sampling(max_tokens=2), seed=1, stream=0)
    assert (cut[0].finish_reason, len(cut[0].response_ids)) == ("length", 2)


def test_each_sample_has_its_own_seed_whatever_else_is_sampled(engine: VllmEngine) -> None:
    sampling = Sampling(n=2, max_tokens=16)
    together = engine.generate(PROMPTS, sampling, seed=1, stream=3)
    alone = [item for prompt in PROMPTS for item in engine.generate([prompt], sampling, seed=1, stream=3)]
    assert [item.response_ids.tolist() for item in alone] == [item.response_ids.tolist() for item in together]
    assert together[0].response_ids.tolist() != together[1].response_ids.tolist()
    other = engine.generate(PROMPTS, sampling, seed=1, stream=4)
    assert [item.response_ids.tolist() for item in other] != [item.response_ids.tolist() for item in together]


def test_twice_the_same_to_the_bit(engine: VllmEngine) -> None:
    sampling = Sampling(n=2, max_tokens=16)
    first = engine.generate(PROMPTS, sampling, seed=1, stream=0)
    engine.generate(PROMPTS[::-1], sampling, seed=2, stream=9)
    assert engine.generate(PROMPTS, sampling, seed=1, stream=0) == first


def test_ids_the_teacher_does_not_know_are_never_sampled(engine: VllmEngine) -> None:
    engine.vocabulary = 60
    try:
        rollouts = engine.generate(PROMPTS, Sampling(n=4, max_tokens=10), seed=1, stream=0)
    finally:
        engine.vocabulary = None
    assert max(token for item in rollouts for token in item.response_ids) < 60


def test_each_rollout_is_reported_as_soon_as_it_is_whole(engine: VllmEngine) -> None:
    heard: list[Rollout] = []
    seen: list[tuple[int, int]] = []
    rollouts = engine.generate(
        PROMPTS,
        Sampling(n=2, max_tokens=16),
        seed=1,
        stream=0,
        finished=heard.append,
        progress=lambda *counts: seen.append(counts),
    )
    assert sorted(heard, key=rollouts.index) == rollouts
    whole = [done for done, *_ in seen]
    assert whole == sorted(whole)
    assert set(whole) >= set(range(1, 9))
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    assert seen[-1] == (8, 8, tokens, tokens)


def test_progress_counts_the_tokens_of_responses_that_are_still_written(engine: VllmEngine, monkeypatch) -> None:
    monkeypatch.setattr(in_process, "REPORT_EVERY", 0.0)
    seen = []
    rollouts = engine.generate(
        PROMPTS, Sampling(max_tokens=16), seed=1, stream=0, progress=lambda *counts: seen.append(counts)
    )
    before = [tokens for done, _, tokens, _ in seen if done == 0]
    assert before[0] <= len(PROMPTS)
    assert max(before) > len(PROMPTS), "told again as they grow"
    assert seen[-1][2] == sum(len(rollout.response_ids) for rollout in rollouts)


def test_after_an_interruption_nothing_of_it_runs_on(engine: VllmEngine) -> None:
    def stop(rollout: Rollout) -> None:
        raise KeyboardInterrupt

    expected = engine.generate(PROMPTS, Sampling(max_tokens=8), seed=1, stream=0)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, Sampling(n=4, max_tokens=8), seed=5, stream=0, finished=stop)
    assert not engine.vllm.engine.has_unfinished_requests()
    assert engine.generate(PROMPTS, Sampling(max_tokens=8), seed=1, stream=0) == expected


# ---------------------------------------------------------------------------------------------- weights


def test_after_a_sync_it_answers_with_the_students_weights(engine: VllmEngine, student: Student) -> None:
    before = engine.generate(PROMPTS, Sampling(max_tokens=16), seed=1, stream=0)
    disturb(student, 0.3)
    engine.sync_weights(student, 5)
    after = engine.generate(PROMPTS, Sampling(max_tokens=16), seed=1, stream=0)
    assert [item.response_ids.tolist() for item in after] != [item.response_ids.tolist() for item in before]
    assert {item.policy_version for item in after} == {5}
    assert_logprobs_of(student.model, after, Sampling())
    assert check_parity(engine, student, PROMPTS, ParityConfig(), seed=0).max_gap < 1e-4


def test_adapters_arrive_merged_and_stay_apart_in_the_student(engine: VllmEngine, student: Student) -> None:
    import peft

    adapted = peft.get_peft_model(student.model, peft.LoraConfig(r=4, target_modules="all-linear"))
    student.adapters = adapted
    kept = {name: value.clone() for name, value in student.model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    engine.sync_weights(student, 1)
    student.model.eval()
    rollouts = engine.generate(PROMPTS, Sampling(max_tokens=16), seed=1, stream=0)
    assert_logprobs_of(student.model, rollouts, Sampling())
    for name, value in student.model.state_dict().items():
        assert "lora_B" in name or torch.equal(value, kept[name])


def test_parity_catches_weights_that_were_not_taken_over(
    engine: VllmEngine, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(student, 0.3)
    monkeypatch.setattr(InProcess, "call", lambda *arguments: None)
    engine.sync_weights(student, 1)
    with pytest.raises(EngineError, match="the weights still do not arrive whole"):
        check_parity(engine, student, PROMPTS, ParityConfig(), seed=0)
    monkeypatch.undo()
    with pytest.raises(EngineError, match="it had not taken over the last weights"):
        check_parity(engine, student, PROMPTS, ParityConfig(), seed=0)


def test_parity_catches_a_stale_prefix_cache(
    engine: VllmEngine, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps cached prefixes across new weights. Without a reset, answers mix old keys with new weights."""
    engine.generate(PROMPTS, Sampling(max_tokens=1), seed=1, stream=0)
    disturb(student, 0.3)
    resets, whole = [], InProcess.reset_cache

    def forget_twice(vllm: InProcess) -> None:  # after the sync, and before the comparison
        resets.append(vllm)
        if len(resets) > 2:
            whole(vllm)

    monkeypatch.setattr(InProcess, "reset_cache", forget_twice)
    engine.sync_weights(student, 1)
    with pytest.raises(EngineError, match="its prefix cache was stale"):
        check_parity(engine, student, PROMPTS, ParityConfig(), seed=0)


def test_parity_warns_between_its_limits(
    engine: VllmEngine, student: Student, caplog: pytest.LogCaptureFixture
) -> None:
    disturb(student, 0.02)  # and not synced
    found = check_parity(engine, student, PROMPTS, ParityConfig(warn=1e-4, fail=100.0), seed=0)
    assert 1e-4 < found.mean_gap < found.max_gap
    assert "above rollout.parity.warn" in caplog.text


@pytest.fixture(scope="module")
def tied_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tied") / "model"
    config = Qwen3Config(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(made)
    AutoTokenizer.from_pretrained(folder).save_pretrained(made)
    return made


def test_tied_embeddings_are_synced_and_parity_catches_it_when_they_are_not(
    tied_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, vLLM's packed head keeps the old weights across a reload."""
    student = load_student(tied_folder)
    disturb(student, 0.3)
    with start_engine(tied_folder, tmp_path / "vllm.log") as engine:
        engine.sync_weights(student, 1)
        assert check_parity(engine, student, PROMPTS, ParityConfig(), seed=0).max_gap < 1e-4
        disturb(student, 0.5, seed=1)
        monkeypatch.setattr(worker, "retie_head", lambda model: None)
        engine.sync_weights(student, 2)
        with pytest.raises(EngineError, match="the embeddings are tied, so its head may have kept old weights"):
            check_parity(engine, student, PROMPTS, ParityConfig(), seed=0)


# ---------------------------------------------------------------------------------------------- the teacher


WINDOWS: dict[str, Callable[[int], tuple[int, int]]] = {
    "whole": lambda length: (0, length),
    "first30": lambda length: window_bounds(length, 0.3, "first"),
    "last30": lambda length: window_bounds(length, 0.3, "last"),
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_a_vllm_teacher_scores_as_transformers_does_beside_a_students_engine(
    window: Callable[[int], tuple[int, int]],
    engine: VllmEngine,
    teacher: VllmTeacher,
    smoke_models: dict[str, Path],
) -> None:
    """Two engines in one process, the batch cut into chunks of 16 tokens."""
    rollouts = engine.generate(PROMPTS, Sampling(n=2, max_tokens=20), seed=1, stream=0)
    reference = HfTeacher(LanguageModel(AutoModelForCausalLM.from_pretrained(smoke_models["teacher"])), CPU)
    for found, expected in zip(teacher.score(rollouts, window), reference.score(rollouts, window), strict=True):
        assert (found.rollout, found.start, found.stop) == (expected.rollout, expected.start, expected.stop)
        assert_close(torch.tensor(found.teacher_logprobs), torch.tensor(expected.teacher_logprobs), rtol=0, atol=1e-4)


def test_a_vllm_teacher_scores_after_a_prompt_of_its_own(
    engine: VllmEngine, teacher: VllmTeacher, smoke_models: dict[str, Path]
) -> None:
    """Also where it was told early; the student's engine reads the student's."""
    taught = [replace(prompt, teacher_ids=[*prompt.ids[:-1], 65, 66, *prompt.ids[-1:]]) for prompt in PROMPTS]
    sampling, window = Sampling(n=2, max_tokens=20), WINDOWS["whole"]
    prompted = PromptedTeacher(teacher)
    rollouts = engine.generate(
        taught, sampling, seed=1, stream=0, finished=lambda rollout: prompted.expect(rollout, window)
    )
    plain = engine.generate(PROMPTS, sampling, seed=1, stream=0)
    assert [replace(each, teacher_prompt_ids=None) for each in rollouts] == plain
    lm = LanguageModel(AutoModelForCausalLM.from_pretrained(smoke_models["teacher"]))
    reference = PromptedTeacher(HfTeacher(lm, CPU)).score(rollouts, window)
    unlike = HfTeacher(lm, CPU).score(plain, window)
    for found, expected, other in zip(prompted.score(rollouts, window), reference, unlike, strict=True):
        assert found.rollout is expected.rollout
        assert_close(torch.tensor(found.teacher_logprobs), torch.tensor(expected.teacher_logprobs), rtol=0, atol=1e-4)
        assert (found.teacher_logprobs - other.teacher_logprobs).max() > 1e-2


@pytest.fixture(scope="module")
def teacher(smoke_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmTeacher]:
    engine = VllmEngineConfig(kv_cache_gib=0.25, sequences=8, batch_tokens=16)
    settings = Settings(str(smoke_models["teacher"]), 257, "float32", engine)
    log_file = tmp_path_factory.mktemp("teacher") / "vllm.log"
    with VllmTeacher(InProcess("scoring=vllm", settings, log_file, enable_prefix_caching=False), 60) as made:
        yield made


@pytest.mark.parametrize("window", [WINDOWS["whole"], WINDOWS["last30"]], ids=["whole", "last30"])
def test_a_vllm_teacher_gives_the_likeliest_tokens_that_transformers_does(
    window: Callable[[int], tuple[int, int]], teacher: VllmTeacher, smoke_models: dict[str, Path], make_rollouts: Any
) -> None:
    rollouts, model = make_rollouts(8, seed=4, longest=40, vocabulary=200), load_student(smoke_models["teacher"]).lm
    for asked in (Signal("top_k", 1), Signal("top_k", 20)):
        assert_likeliest_of(model.model, teacher.score(rollouts, window, signal=asked), asked.k)
        assert_likeliest_of(model.model, HfTeacher(model, CPU).score(rollouts, window, signal=asked), asked.k)


@pytest.mark.parametrize("signal_kind", ["top_k", "full"])
def test_a_run_on_distributions_of_a_vllm_teacher_is_that_of_one_in_transformers(
    signal_kind: str, tmp_path: Path
) -> None:
    """Of the likeliest tokens, more than vLLM gives by default."""
    loss = ("loss=reverse_kl", f"loss.signal={signal_kind}", "loss.top_k=40", "eval.every=0", "run.steps=2")
    found = []
    for name, scoring in {"hf": (), "vllm": ("scoring=vllm", "scoring.engine.kv_cache_gib=0.25")}.items():
        assert iwopd("train", *SMALL, *loss, *scoring, f"run.dir={tmp_path / name}") == 0
        found.append([row for row in rows(tmp_path / name / "metrics.jsonl") if "train/loss" in row])
    for one, other in zip(*found, strict=True):
        for key in ("train/loss", "train/reverse_kl", "train/grad_norm", "train/advantage_mean"):
            assert one[key] == pytest.approx(other[key], rel=1e-3)


@pytest.fixture(scope="module")
def states(smoke_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStatesTeacher]:
    engine = VllmEngineConfig(kv_cache_gib=0.25, sequences=8, batch_tokens=16)
    settings = Settings(str(smoke_models["teacher"]), 257, "float32", engine, whole_prompts=True, pooling=True)
    log_file = tmp_path_factory.mktemp("states") / "vllm.log"
    pooling = InProcess("scoring=vllm", settings, log_file, enable_prefix_caching=False)
    with VllmStatesTeacher(pooling, LmHead(load_student(smoke_models["teacher"]).lm, CPU)) as made:
        yield made


@pytest.mark.parametrize("window", [WINDOWS["whole"], WINDOWS["last30"]], ids=["whole", "last30"])
def test_a_pooling_engine_gives_the_hidden_states_that_transformers_does(
    window: Callable[[int], tuple[int, int]],
    states: VllmStatesTeacher,
    smoke_models: dict[str, Path],
    make_rollouts: Any,
) -> None:
    """And with the head, which is at the student's side, the same distributions to 1e-4 nats."""
    rollouts = make_rollouts(8, seed=4, longest=40, vocabulary=200)
    reference = HfTeacher(load_student(smoke_models["teacher"]).lm, CPU)
    for asked in (Signal(), Signal("top_k", 5), Signal("full")):
        scored = states.score(rollouts, window, signal=asked)
        expected = reference.score(rollouts, window, signal=asked)
        for found, wanted in zip(scored, expected, strict=True):
            assert (found.rollout, found.start, found.stop) == (wanted.rollout, wanted.start, wanted.stop)
            assert_close(torch.tensor(found.teacher_logprobs), torch.tensor(wanted.teacher_logprobs), rtol=0, atol=1e-4)
            if asked.kind == "full":
                assert_close(found.teacher_hidden, wanted.teacher_hidden, rtol=0, atol=1e-4)
                whole = (each.head()(record.teacher_hidden) for each, record in ((states, found), (reference, wanted)))
                assert_close(*(logits.log_softmax(-1) for logits in whole), rtol=0, atol=1e-4)
        if asked.kind == "top_k":
            assert_likeliest_of(reference.model.model, scored, 5)


def test_scores_are_the_same_with_overlap(
    engine: VllmEngine, teacher: VllmTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = WINDOWS["whole"]
    early: list[int] = []
    run = teacher.vllm.run

    def counted(prompts: list[list[int]], *rest: Any) -> Any:
        early.append(len(prompts))
        return run(prompts, *rest)

    def expect(rollout: Rollout) -> None:
        teacher.expect(rollout, window)

    monkeypatch.setattr(teacher.vllm, "run", counted)
    rollouts = engine.generate(PROMPTS, Sampling(n=2, max_tokens=20), seed=1, stream=0, finished=expect)
    assert 0 < sum(early) <= len(rollouts), "some were scored before the last was written"
    overlapped = teacher.score(rollouts, window)
    apart = teacher.score(rollouts, window)
    for found, expected in zip(overlapped, apart, strict=True):
        assert found.rollout == expected.rollout
        assert_close(torch.tensor(found.teacher_logprobs), torch.tensor(expected.teacher_logprobs), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- clean


def test_starting_an_engine_leaves_the_process_and_other_engines_as_they_were(
    engine: VllmEngine, folder: Path, tmp_path: Path
) -> None:
    def state() -> list[Any]:
        return [
            torch.get_num_threads(),
            torch.set_num_threads,
            random.getstate(),
            str(numpy.random.get_state()),
            torch.get_rng_state().tolist(),
            {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
            os.sched_getaffinity(0),
            torch.get_default_dtype(),
            signal.getsignal(signal.SIGINT),
        ]

    expected = engine.generate(PROMPTS, Sampling(max_tokens=8), seed=1, stream=0)
    before = state()
    with start_engine(folder, tmp_path / "vllm.log") as another:
        assert state() == before
        another.generate(PROMPTS, Sampling(max_tokens=4), seed=1, stream=0)
    assert state() == before
    assert engine.generate(PROMPTS, Sampling(max_tokens=8), seed=1, stream=0) == expected


def test_an_engine_that_does_not_start_is_one_line_with_its_log(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"rollout=vllm: vLLM does not start with .*; its log is .*vllm\.log"
    ) as caught:
        start_engine(folder, tmp_path / "vllm.log", more={"max_model_len": 10**9})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.process
def test_importing_iwopd_never_imports_vllm() -> None:
    """But for the module that speaks to vLLM's own weight transfer, which is imported with the first weights."""
    code = (
        "import pkgutil, importlib, sys, iwopd\n"
        "for module in pkgutil.walk_packages(iwopd.__path__, 'iwopd.'):\n"
        "    if not module.name.endswith(('__main__', 'vllm.sender')): importlib.import_module(module.name)\n"
        "print('vllm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def children(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_run_is_quiet_and_leaves_no_process(tmp_path: Path) -> None:
    running = start("train", *VLLM_SMALL, "scoring=vllm", f"run.dir={tmp_path / 'run'}", start_new_session=True)
    out, errors = running.communicate(timeout=200)
    assert running.returncode == 0, errors
    assert errors == ""
    assert "INFO" not in out
    assert "WARNING" not in out
    assert children(running.pid) == []
    assert "vllm" in (tmp_path / "run" / "vllm.log").read_text()


def test_an_error_leaves_no_process(tmp_path: Path) -> None:
    settings = (*VLLM_SMALL, "optim.lr=1e30", "optim.warmup_steps=0", "rollout.parity.prompts=0")
    running = start("train", *settings, f"run.dir={tmp_path / 'run'}", start_new_session=True)
    _, errors = running.communicate(timeout=200)
    assert running.returncode == 2, errors
    assert [line for line in errors.splitlines() if not line.startswith("iwopd: ")] == []
    assert children(running.pid) == []


def test_ctrl_c_saves_leaves_no_process_and_the_run_continues(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "stopped"
    running = start("train", *VLLM_SMALL, f"run.dir={folder}", start_new_session=True)
    wait_for_line(running, "step 1")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    time.sleep(0.5)
    assert children(running.pid) == []
    assert iwopd("train", *VLLM_SMALL, f"run.dir={folder}", "run.resume=true") == 0
    assert weights(folder / "final") == weights(finished / "final")
    resumed, expected = (
        [
            {key: value for key, value in row.items() if not key.startswith("sync/")}  # an empty cache rounds otherwise
            for row in without_times(rows(run / "metrics.jsonl"))
        ]
        for run in (folder, finished)
    )
    assert resumed == expected


# ---------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with vLLM that was never interrupted."""
    made = tmp_path_factory.mktemp("runs") / "whole"
    assert iwopd("train", *VLLM_SMALL, f"run.dir={made}") == 0
    return made


def test_metrics_tell_of_the_sync(finished: Path) -> None:
    training = [row for row in rows(finished / "metrics.jsonl") if "train/loss" in row]
    for row in training:
        assert row["time/sync_s"] > 0
        assert 0 <= row["sync/parity_mean_gap"] <= row["sync/parity_max_gap"] < 1e-4
        assert row["train/sampler_gap_mean"] < 1e-4, "the engine had the weights of the step before"


def test_resume_is_exact_with_two_engines(tmp_path: Path) -> None:
    extra = ("scoring=vllm", "rollout.n=2", "rollout.top_p=0.9")
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert iwopd("train", *VLLM_SMALL, *extra, f"run.dir={whole}") == 0
    shutil.copytree(whole, half)
    shutil.rmtree(half / "final")
    shutil.rmtree(half / "checkpoints" / "step-000004")
    assert iwopd("train", *VLLM_SMALL, *extra, f"run.dir={half}", "run.resume=true") == 0
    assert weights(half / "final") == weights(whole / "final")
    assert without_times(rows(half / "metrics.jsonl")) == without_times(rows(whole / "metrics.jsonl"))


def test_a_run_stops_when_engine_and_trainer_differ_and_its_step_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are taken over once, and then no more."""
    taken, whole = [], InProcess.call

    def once(vllm: InProcess, method: str, *arguments: Any) -> None:
        taken.append(method)
        if len(taken) == 1:
            whole(vllm, method, *arguments)

    monkeypatch.setattr(InProcess, "call", once)
    line = refused(capsys, "train", *VLLM_SMALL, "optim.lr=0.05", f"run.dir={tmp_path / 'run'}")
    assert "above rollout.parity.fail=0.5" in line
    assert "step 1 is saved" in line
    assert (tmp_path / "run" / "checkpoints" / "step-000001" / "manifest.json").exists()
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row] == [1]


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path]:
    """Settings of an evaluation of its student, and what it leaves with vLLM."""
    folder = tmp_path_factory.mktemp("evaluated") / "whole"
    limits = ("eval.benchmarks.smoke.limit=64", "eval.chunk=16")
    settings = (*SMALL, *limits, f"eval.model={finished / 'final'}")
    assert iwopd("eval", *settings, "rollout=vllm", f"run.dir={folder}") == 0
    return settings, folder


def test_eval_with_vllm_measures_about_what_hf_measures(
    evaluated: tuple[tuple[str, ...], Path], tmp_path: Path
) -> None:
    settings, whole = evaluated
    assert iwopd("eval", *settings, f"run.dir={tmp_path / 'hf'}") == 0
    (hf,), (vllm,) = (rows(folder / "metrics.jsonl") for folder in (tmp_path / "hf", whole))
    assert vllm["eval/greedy_accuracy"] == pytest.approx(hf["eval/greedy_accuracy"], abs=0.05)
    spread = hf["eval/accuracy_high"] - hf["eval/accuracy_low"]
    assert vllm["eval/accuracy"] == pytest.approx(hf["eval/accuracy"], abs=spread)


def test_an_evaluation_with_vllm_continues_to_the_same_samples(
    evaluated: tuple[tuple[str, ...], Path], tmp_path: Path
) -> None:
    settings, whole = evaluated
    shutil.copytree(whole, tmp_path / "cut")
    file = tmp_path / "cut" / "eval" / "smoke.jsonl.zst"
    file.write_bytes(file.read_bytes()[:-1])  # what was drawn last is lost
    assert iwopd("eval", *settings, "rollout=vllm", f"run.dir={tmp_path / 'cut'}", "run.resume=true") == 0
    assert file.read_bytes() == (whole / "eval" / "smoke.jsonl.zst").read_bytes()
    found = [(folder / "eval" / "smoke.json").read_text() for folder in (whole, tmp_path / "cut")]
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.cli
def test_a_missing_vllm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("iwopd.vllm.find_spec", lambda name: None)
    line = refused(capsys, "train", *VLLM_SMALL, f"run.dir={tmp_path / 'run'}")
    assert "rollout=vllm: vLLM is not installed; pip install 'iwopd[vllm]'" in line
    assert "scoring=vllm: vLLM is not" in refused(capsys, "train", "scoring=vllm", f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.cli
def test_a_vllm_that_is_too_old_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.9.2")
    line = refused(capsys, "train", *VLLM_SMALL, f"run.dir={tmp_path / 'run'}")
    assert "vLLM 0.9.2 is too old, 0.32 or newer is needed" in line


@pytest.mark.process
def test_a_missing_vllm_is_reported_before_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "whole = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'vllm' else whole(name, *rest)\n"
    )
    done = process("train", "rollout=vllm", cwd=tmp_path, fresh=True, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("iwopd: rollout=vllm: vLLM is not installed")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.cli
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("rollout=vllm rollout.top_p=0.9 loss.importance_cap=null", "rollout.top_p=0.9: samples another distribution"),
        ("rollout.temperature=0.7 scoring.student_logprobs=sampler", "rollout.temperature=0.7: the sampler's"),
        ("rollout=vllm rollout.batch_size=3", "rollout.batch_size=3: no such key"),
        ("rollout=vllm rollout.parity.fail=0", "rollout.parity.fail=0.0: must be above 0"),
        ("rollout=vllm rollout.engine.gpu_memory=1.5", "rollout.engine.gpu_memory=1.5"),
        ("rollout=vllm rollout.dtype=float16", "choose one of float32, bfloat16"),
        ("rollout=vllm_server", "rollout.urls=???: not set"),
        ("rollout=vllm_server rollout.urls=[]", "names no server"),
        ("rollout=vllm_server rollout.urls=http://a:1", "not a list; write rollout.urls=[…]"),
        ("rollout=vllm_server rollout.urls=[localhost:8000]", "write rollout.urls=[http://HOST:PORT]"),
        ("scoring=vllm_server scoring.urls=[http://a:1,http://a:1]", "duplicate address"),
    ],
)
def test_a_mistake_is_one_line(overrides: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "train", *overrides.split())
