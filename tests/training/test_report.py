"""A run's report from its folder: weights are the weighting code's, and what is damaged or missing stops nothing."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.report_runs import CONFIG, sample, written_run

from iwopd.evaluation.evaluate import Graded
from iwopd.evaluation.grading import Verdict
from iwopd.models.student import Student
from iwopd.report.run_page import run_page
from iwopd.scoring.hf import HfTeacher
from iwopd.seeding import derive_seed
from iwopd.training import report
from iwopd.training.objective import Objective
from iwopd.training.positions import by_tenth
from iwopd.training.report import FILE, refresh, responses, run_data, write
from iwopd.training.samples import sample_rows
from iwopd.training.score import score
from iwopd.types import Prompt, Rollout
from iwopd.weighting import SCHEMES
from iwopd.weighting.window import Window


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(97 + number % 26) for number in ids)


def graded(rollout: Rollout) -> Graded:
    prompt = Prompt(rollout.prompt_id, rollout.prompt_ids.tolist(), "1+1?", "2")
    return Graded(prompt, rollout, "2", Verdict(correct=True))


@pytest.fixture
def rollouts(make_rollouts: Callable[..., list[Rollout]]) -> list[Rollout]:
    return make_rollouts(4, seed=3, longest=12)


@pytest.mark.parametrize("chosen", [SCHEMES["iw"](), Window(side="last", fraction=0.5)], ids=["iw", "last50"])
def test_weights_are_those_of_the_weighting_code(
    rollouts: list[Rollout], tiny_model: Callable[..., Any], tiny_student: Callable[..., Student], chosen: Any
) -> None:
    """Of every scheme, on the responses as they were scored in the run: what the training would have made of them."""
    student, teacher = tiny_student(), HfTeacher(tiny_model(1), torch.device("cpu"))
    objective = Objective(chosen)
    rows = sample_rows(
        [graded(each) for each in rollouts], teacher, student, objective, progress=0.4, tokenizer=Letters()
    )
    found = responses([{"benchmark": "b", **row} for row in rows], {"scheme": "iw"})
    scored = score(teacher, rollouts, lambda length: (0, length), student=student, objective=objective)
    seeds = [derive_seed("samples", rollout.name) for rollout in rollouts]
    for scheme in (SCHEMES["iw"](), SCHEMES["prefix_ratio"](), Window(side="random"), SCHEMES["prefix_boost"]()):
        expected, _ = Objective(scheme).of_whole_batch(scored, seeds, 0.4)
        for response, weights in zip(found, expected, strict=True):
            assert numpy.allclose(response.weights[scheme.name], weights.numpy(), atol=2e-4), scheme.name
    own, advantages = objective.of_whole_batch(scored, seeds, 0.4)
    for response, record, weights, each in zip(found, scored, own, advantages, strict=True):
        assert numpy.allclose(response.weights["as trained: iw"], weights.numpy(), atol=1e-5)
        assert numpy.allclose(response.student, record.trainer_logprobs, atol=1e-5)
        assert numpy.allclose(response.teacher, record.teacher_logprobs, atol=1e-5)
        assert numpy.allclose(response.advantages, each.numpy(), atol=1e-5)
        assert len(response.tokens) == len(record.rollout.response_ids)


def test_rows_of_a_window_are_known_there_alone() -> None:
    """As runs wrote them whose responses were scored within the scheme's window."""
    row = sample(0, 0, 10, numpy.random.default_rng(0))
    for key in ("teacher_logprobs", "advantages", "weights"):
        row[key] = row[key][7:]
    del row["student_logprobs"], row["progress"]
    [found] = responses([row | {"start": 7}], {"scheme": "window", "side": "last", "fraction": 0.3})
    assert numpy.isnan(found.student[:7]).all()
    assert numpy.allclose(found.student[7:], row["sampler_logprobs"][7:], atol=1e-4)
    assert numpy.isnan(found.weights["as trained: last30"][:7]).all()
    assert numpy.allclose(found.weights["last30"][7:], 1.0)


def test_means_by_tenth(
    rollouts: list[Rollout], make_scored: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    scored = make_scored(rollouts, tiny_model(1), lambda length: (0, (length + 1) // 2))
    sums: dict[int, list[float]] = {}
    for record in scored:
        length = len(record.rollout.response_ids)
        for place in range(record.start, record.stop):
            gap = float(record.rollout.sampler_logprobs[place] - record.teacher_logprobs[place - record.start])
            sums.setdefault(10 * place // length, []).append(gap)
    found: Any = by_tenth(scored)
    for tenth in range(10):
        gaps = sums.get(tenth, [])
        assert found["tokens"][tenth] == len(gaps)
        for key, values in (("reverse_kl", gaps), ("abs_advantage", list(map(abs, gaps)))):
            mean = sum(values) / len(values) if values else None
            assert found[key][tenth] == (mean if mean is None else pytest.approx(mean, abs=1e-5))
    assert found["reverse_kl"][9] is None, "the second half is not scored"


def page(folder: Path) -> str:
    write([folder], folder / FILE)
    return (folder / FILE).read_text(encoding="utf-8")


def test_a_whole_run_has_every_chart(tmp_path: Path) -> None:
    text = page(written_run(tmp_path / "run"))
    for name in (
        *("accuracy", "reverse-kl", "ends", "advantage", "position-reverse_kl", "position-abs_advantage", "lengths"),
        *("learning-rate", "gradient-norm", "seconds", "tokens", "gaps", "memory"),
    ):
        assert f'<figure class="chart" id="{name}">' in text, name
    assert "20 of 1,000, finished" in text
    assert "<td>1e-05</td>" in text, "optim.lr=1e-5 differs from its preset"
    assert not re.search(r'(src|href)="(?!#)', text), "nothing is fetched"


@pytest.mark.parametrize("kind", ["new", "before evaluations", "no benchmark", "torn"])
def test_an_unfinished_run_has_a_page(tmp_path: Path, kind: str) -> None:
    folder = written_run(tmp_path / "run", steps=6, every=2)
    (folder / "final").rmdir()
    metrics = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").unlink()
    if kind == "new":
        for name in ("metrics.jsonl", "positions.jsonl", "about.json"):
            (folder / name).unlink()
    elif kind == "torn":
        (folder / "metrics.jsonl").write_text("".join(metrics)[:-40])
        (folder / "samples.jsonl").write_text(json.dumps(sample(0, 0, 5, numpy.random.default_rng(0)))[:-9])
        (folder / "about.json").write_text("[")
    else:
        (folder / "metrics.jsonl").write_text("".join(line for line in metrics if "eval/accuracy" not in line))
    text = page(folder)
    assert "so far" in text
    assert "No responses were kept" in text
    assert ("Nothing was evaluated yet" in text) == (kind != "torn")


def test_before_and_after_are_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "run", steps=30, every=10, kept=3)
    middle = json.dumps(sample(10, 0, 5, numpy.random.default_rng(0))) + "\n"
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join([*lines[:3], middle, *lines[3:]]))
    found = run_data(folder, "run", CONFIG)
    assert [column.label for column in found.columns] == ["run, before training", "run, after step 30"]
    assert [[each.key[1] for each in column.responses] for column in found.columns] == 2 * [
        ["test-0", "test-1", "test-2"]
    ]


def test_nothing_of_a_response_is_code(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "run", steps=2, every=1, kept=1, tokens=3)
    evil = "</script><!--<script>alert(1)//\u2028\x1b[31m"
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"tokens": [evil, "<b>", "\ud800"], "prompt": evil, "answer": evil, "prompt_id": evil, "benchmark": evil}
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(folder)
    assert "alert(1)" in text
    assert text.count("<script") == text.count("</script>") == 2 + len(rows)
    assert "<!--" not in text
    assert "\x1b" not in text
    index = json.loads(re.search(r'id="responses-index">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore
    assert index["problems"][0]["prompt"].startswith("</script><!--<script>alert(1)")


def test_secrets_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "swordfish-1234")
    found = run_data(written_run(tmp_path / "run"), "run", {**CONFIG, "student": {"path": "/x/swordfish-1234"}})
    assert "swordfish" not in run_page([found])


def test_a_fault_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written_run(tmp_path / "run")
    before = page(folder)
    monkeypatch.setattr(report, "run_page", lambda runs: 1 / 0)
    with caplog.at_level(logging.WARNING):
        refresh(folder, CONFIG)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / FILE}: not written (ZeroDivisionError: division by zero)"
    ]
    assert (folder / FILE).read_text(encoding="utf-8") == before
    assert not list(folder.glob(".draft*"))


def test_a_disk_that_takes_nothing_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = written_run(tmp_path / "run")
    (folder / FILE).mkdir()
    with caplog.at_level(logging.WARNING):
        refresh(folder, CONFIG)
    [record] = caplog.records
    assert f"{folder / FILE}: cannot be written" in record.getMessage()


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    folders = [written_run(tmp_path / place / "run", seed=number) for number, place in enumerate("ab")]
    (folders[1] / "config.yaml").write_text(
        (folders[1] / "config.yaml").read_text().replace("gamma: 0.5", "gamma: 0.9")
    )
    write(folders, tmp_path / FILE)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert "<title>2 runs compared</title>" in text
    assert '<tr><th scope="row">weighting.gamma</th><td>0.5</td><td>0.9</td></tr>' in text
    assert text.count("a/run, before training") >= 1
    assert len(re.findall(r'id="response-\d+"', text)) == 16


def test_a_page_is_bounded_however_much_a_run_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 responses of 16 k tokens take 7.8 MB (scripts/bench_report.py); here a 64th of that, and too much for a page
    of a 64th of the bound."""
    folder = written_run(tmp_path / "run", kept=32, tokens=256)
    whole = len(page(folder).encode())
    assert whole < 10_000_000 / 64 + 450_000, "charts and the script come on top"
    assert "found room" not in page(folder)
    monkeypatch.setattr("iwopd.report.run_page.MOST_BYTES", 60_000)
    text = page(folder)
    assert re.search(r"\d+ of 32 problems found room here", text)
    assert len(text.encode()) < whole
