"""Studies: arms and seeds from the command line, whole studies of real runs, and their reports."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from running import SMALL, iwopd, process, refused, rows, start, weights, without_times

from iwopd.study.curves import Curve, Point, area, early_place, figures, value_at
from iwopd.study.results import difference, mean_curve
from iwopd.study.words import verdicts

pytestmark = pytest.mark.usefixtures("smoke_models")

STUDY = (*SMALL, "ablate.early=2", "ablate.seeds=2", "eval.greedy=false")
ARMS = "ablate.arms=[uniform,{name: iw_1.0, weighting: iw, weighting.gamma: 1.0}]"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two arms and two seeds."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    done = process("ablate", *STUDY, ARMS, f"run.dir={folder}", "ablate.workers=2")
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout, "a pipe gets plain lines"
    assert "iw_1.0 seed 2: accuracy" in done.stdout
    return folder


def test_what_a_study_leaves(study: Path) -> None:
    left = {entry.name for entry in study.iterdir() if not entry.name.startswith(".")}
    assert left == {"config.yaml", "about.json", "study.json", "study.md", "report.html", "figures", "runs"}
    assert {file.name for file in (study / "figures").iterdir()} == {
        *("accuracy.png", "accuracy.svg", "differences.png", "differences.svg"),
    }
    found = json.loads((study / "study.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["uniform", "iw_1.0"]
    for arm in found["arms"]:
        for name in ("early", "best", "final", "auc", "tokens_generated", "tokens_scored", "tokens_trained", "seconds"):
            assert arm[name].keys() == {"mean", "sd", "values"}
            assert len(arm[name]["values"]) == 2
        assert arm["peak_mib"]["mean"] > 50
    (comparison,) = found["comparisons"]
    assert (comparison["name"], comparison["baseline"], comparison["seeds"]) == ("iw_1.0", "uniform", [1, 2])
    for name in ("early", "best", "final", "auc"):
        ours, theirs = (arm[name]["values"] for arm in reversed(found["arms"]))
        assert comparison[name]["values"] == pytest.approx([a - b for a, b in zip(ours, theirs, strict=True)])
        assert comparison[name]["p"] in (0.5, 1.0)


def test_figures_are_those_of_the_runs(study: Path) -> None:
    found = json.loads((study / "study.json").read_text())
    for arm in found["arms"]:
        for index, seed in enumerate((1, 2)):
            metrics = rows(study / "runs" / arm["name"] / f"seed-{seed}" / "metrics.jsonl")
            accuracy = {row["step"]: row["eval/accuracy"] for row in metrics if "eval/accuracy" in row}
            assert arm["early"]["values"][index] == accuracy[2]
            assert arm["final"]["values"][index] == accuracy[4]
            assert arm["best"]["values"][index] == max(accuracy.values())
            assert arm["auc"]["values"][index] == pytest.approx((accuracy[0] + 2 * accuracy[2] + accuracy[4]) / 4)
            generated = sum(row.get("tokens/generated", 0) for row in metrics)
            assert arm["tokens_generated"]["values"][index] == generated


def test_arms_are_paired_and_differ_by_their_overrides_alone(study: Path) -> None:
    for seed in (1, 2):
        first, second = (
            next(row for row in rows(study / "runs" / arm / f"seed-{seed}" / "metrics.jsonl") if "train/loss" in row)
            for arm in ("uniform", "iw_1.0")
        )
        for key in ("train/abs_advantage_mean", "tokens/generated", "train/reverse_kl", "train/lr"):
            assert first[key] == second[key], key
        assert (first["train/weight_max"], second["train/weight_max"]) == (1.0, pytest.approx(2.0))


def test_a_study_that_is_done_runs_nothing_and_one_of_another_config_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (study / "runs").rglob("*") if file.is_file()}
    assert iwopd("ablate", *STUDY, ARMS, f"run.dir={study}") == 0
    assert "4 of 4 runs are done already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (study / "runs").rglob("*") if file.is_file()} == before
    line = refused(capsys, "ablate", *STUDY, ARMS, f"run.dir={study}", "optim.lr=1e-3")
    assert "optim.lr (there 0.0002, here 0.001)" in line
    other = ARMS.replace("1.0}", "2.0}")
    assert "weighting.gamma (there 1.0, here 2.0)" in refused(capsys, "ablate", *STUDY, other, f"run.dir={study}")


def test_runs_still_to_come_must_read_what_finished_ones_have_read(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    file = folder / "runs" / "uniform" / "seed-1" / "inputs.json"
    inputs = json.loads(file.read_text())
    inputs["problems"]["eval.benchmarks.smoke"]["digests"]["test-3"] = "another"
    file.write_text(json.dumps(inputs))
    shutil.rmtree(folder / "runs" / "iw_1.0" / "seed-2")
    line = refused(capsys, "ablate", *STUDY, ARMS, f"run.dir={folder}")
    assert "seed-1: this run began with other inputs: eval.benchmarks.smoke.path=toy://smoke: 1 of" in line
    assert "(test-3)" in line
    assert not (folder / "runs" / "iw_1.0" / "seed-2").exists()


def test_stopped_it_leaves_no_process_and_goes_on_exactly(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    settings = (*STUDY, "ablate.seeds=[1]", ARMS, f"run.dir={folder}", "ablate.workers=2")
    running = start("ablate", *settings)
    metrics = folder / "runs" / "uniform" / "seed-1" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and "train/loss" in metrics.read_text()):
        time.sleep(0.01)
    children = children_of(running.pid)
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert "run.dir=" in out
    assert children
    assert not [pid for pid in children if alive(pid)]
    assert not (folder / "study.json").exists()
    assert iwopd("ablate", *settings) == 0
    for arm in ("uniform", "iw_1.0"):
        ours, theirs = (place / "runs" / arm / "seed-1" for place in (folder, study))
        assert weights(ours / "final") == weights(theirs / "final")
        assert without_times(rows(ours / "metrics.jsonl")) == without_times(rows(theirs / "metrics.jsonl"))


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_runs_do_not_outlive_a_study_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    running = start("ablate", *STUDY, "ablate.arms=[uniform]", f"run.dir={folder}", "ablate.seeds=1", "run.steps=500")
    metrics = folder / "runs" / "uniform" / "seed-1" / "metrics.jsonl"
    while running.poll() is None and not metrics.exists():
        time.sleep(0.01)
    (child,) = children_of(running.pid)
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 30
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_a_failed_arm_is_told_and_does_not_stop_the_others(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "failing"
    (folder / "runs").mkdir(parents=True)
    for name in ("config.yaml", "runs/uniform"):  # what is done already serves
        copy = shutil.copytree if (study / name).is_dir() else shutil.copy
        copy(study / name, folder / name)
    arms = "ablate.arms=[uniform,{name: broken, weighting: custom, weighting.path: 'no_such:thing'}]"
    assert iwopd("ablate", *STUDY, "ablate.seeds=[1]", arms, f"run.dir={folder}") == 1
    told = capsys.readouterr()
    assert "broken seed 1: failed: weighting.path=no_such:thing" in told.out
    assert "1 of 2 runs failed" in told.err
    found = json.loads((folder / "study.json").read_text())
    assert found["arms"][0]["seeds"] == [1]
    assert found["arms"][1]["final"] == {"mean": None, "sd": None, "values": []}
    assert list(found["failed"]) == ["broken seed 1"]
    assert "broken seed 1 failed" in (folder / "study.md").read_text()


def test_equal_tokens_give_shorter_responses_more_steps(tmp_path: Path) -> None:
    arms = "ablate.arms=[uniform,{name: short, weighting: uniform, rollout.max_tokens: 10}]"
    settings = (*STUDY, arms, "ablate.seeds=[1]", "ablate.match=tokens", f"run.dir={tmp_path / 'study'}")
    assert iwopd("ablate", *settings, "eval.every=0") == 0
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    base, short = (arm["tokens_generated"]["values"][0] for arm in found["arms"])
    assert base <= short < base + 8 * 10
    steps = [row["step"] for row in rows(tmp_path / "study" / "runs" / "short" / "seed-1" / "metrics.jsonl")]
    assert steps[-1] > 4
    assert found["arms"][0]["curve"]["x"][-1] == base
    assert iwopd("ablate", *settings, "eval.every=0") == 0


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_hydra_launcher_carries_the_runs_out(launcher: str, study: Path, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    folder = tmp_path / "study"
    done = process(
        "ablate", *STUDY, "ablate.arms=[uniform]", "ablate.seeds=1", f"hydra/launcher={launcher}", f"run.dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (place / "runs" / "uniform" / "seed-1" / "final" for place in (folder, study))
    assert weights(ours) == weights(theirs)


# ---------------------------------------------------------------------------------------------- figures and words


def test_curves_by_hand() -> None:
    assert area([0, 10, 20], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert area([0], [0.3]) == 0.3
    assert value_at([0, 10], [0.0, 1.0], 4) == pytest.approx(0.4)
    assert (value_at([0, 10], [0.0, 1.0], -1), value_at([0, 10], [0.0, 1.0], 11)) == (0.0, 1.0)
    curve = Curve((Point(0, 0, 0.2), Point(4, 100, 0.6), Point(8, 300, 0.5)))
    assert early_place(curve, 7, "steps") == 4
    assert early_place(curve, 7, "tokens") == 100
    found = figures(curve, 4, "steps")
    assert found == {"before": 0.2, "early": 0.6, "best": 0.6, "final": 0.5, "auc": pytest.approx(0.475)}
    assert figures(curve, 200, "tokens")["early"] == pytest.approx(0.55)
    assert mean_curve([curve, curve], "tokens")["x"][-1] == 300


def test_verdicts_need_agreement_an_interval_and_seeds() -> None:
    assert difference([0.1, 0.12, 0.09, 0.11, 0.1])["verdict"] == "larger than the noise"
    assert difference([0.1, -0.12, 0.09, -0.11, 0.1])["verdict"] == "not told apart"
    assert difference([0.1, 0.12, 0.09, 0.11])["verdict"] == "too few seeds"
    assert difference([0.1])["low"] is None
    assert difference([])["p"] is None
    # Of one sign, but one seed carries it: the interval reaches 0 or p cannot be small enough.
    assert difference([0.0, 0.0, 0.0, 0.0, 0.5, 0.0])["verdict"] == "not told apart"


def test_words_say_what_few_seeds_cannot_show() -> None:
    item = {"name": "iw", "baseline": "uniform", "seeds": [1, 2, 3, 4, 5]}
    found = {name: difference([0.1, 0.12, 0.09, 0.11, 0.1]) for name in ("early", "best", "final", "auc")}
    results = {
        "early_step": 10, "match": "steps", "baseline": "uniform", "comparisons": [{**item, **found}], "failed": {}
    }  # fmt: skip
    said = " ".join(verdicts(results))
    assert "iw against uniform: larger than the noise at step 10 (+0.104)" in said
    assert "2/2⁵ = 0.0625" in said
    assert "not corrected" in said


# ---------------------------------------------------------------------------------------------- the page


class Seen(HTMLParser):
    """What a page refers to, and what stands in place of its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.pictures: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag == "img":
            self.pictures.append(given.get("alt"))
        if tag == "svg":
            self.pictures.append(given.get("aria-label"))


def test_the_report_needs_no_network_and_says_what_its_pictures_show(study: Path) -> None:
    text = (study / "report.html").read_text()
    page = Seen()
    page.feed(text)
    assert all(reference.startswith("#") for reference in page.references), page.references
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    assert "<script" not in text
    assert len(page.pictures) == 2
    assert all(page.pictures)
    assert "prefers-color-scheme: dark" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in page.references} <= set(ids)
    for name in ("accuracy", "differences"):
        assert "<title>" in (study / "figures" / f"{name}.svg").read_text()


def test_the_report_opens_in_a_browser_without_requests_and_nothing_is_cut(study: Path, tmp_path: Path) -> None:
    chromium = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no chromium on this machine to open the report with")
    probe = (
        "<script>addEventListener('load', () => {"
        "const wide = document.documentElement.scrollWidth > innerWidth;"
        "const flat = [...document.querySelectorAll('svg, img')].filter(x => x.getBoundingClientRect().height < 50);"
        "const out = [...document.querySelectorAll('svg')].filter(s => { const b = s.getBBox(), v = s.viewBox.baseVal;"
        " return b.x < -1 || b.y < -1 || b.x + b.width > v.width + 1 || b.y + b.height > v.height + 1; });"
        "const asked = performance.getEntriesByType('resource').length;"
        "document.title = `wide ${wide} flat ${flat.length} out ${out.length} asked ${asked}`; });</script>"
    )
    page = tmp_path / "report.html"
    page.write_text((study / "report.html").read_text().replace("</body>", f"{probe}</body>"))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--window-size=1000,1400")
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    title = re.search(r"<title>(wide[^<]*)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    assert title[1] == "wide false flat 0 out 0 asked 0"
