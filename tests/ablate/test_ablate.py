"""Studies: arms and seeds from the command line, whole studies of real runs, and their reports."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pytest
from support.browser import chromium
from support.composing import composed
from support.running import SMALL, iwopd, process, refused, rows, start, weights, without_times

from iwopd.ablate.arms import CommandLine, study_arms, study_runs
from iwopd.ablate.curves import Curve, Point, area, common_grid, early_place, figures, study_figures, value_at
from iwopd.ablate.results import COMPARED, Finished, comparisons, difference, mean_curve
from iwopd.ablate.students import study_students
from iwopd.ablate.summary import verdicts
from iwopd.config import AblateConfig
from iwopd.config.stored import stored

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("smoke_models")]

STUDENTS = ["toy://smoke/student", "toy://smoke/teacher"]
STUDY = (*SMALL, "ablate.early=2", "ablate.seeds=2", "eval.greedy=false", f"ablate.students=[{','.join(STUDENTS)}]")
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


def test_each_seed_has_its_student_in_all_arms_and_the_report_says_which(study: Path) -> None:
    for seed, student in enumerate(STUDENTS, start=1):
        for arm in ("uniform", "iw_1.0"):
            text = (study / "runs" / arm / f"seed-{seed}" / "config.yaml").read_text()
            assert f"student:\n  path: {student}\n" in text
    assert json.loads((study / "study.json").read_text())["students"] == STUDENTS
    said = (study / "study.md").read_text()
    assert f"students {STUDENTS[0]} (seed 1), {STUDENTS[1]} (seed 2), teacher toy://smoke/teacher" in said


@pytest.mark.parametrize("seeds", [[1, 2, 3, 4, 5], [7, 3, 11]])
def test_students_take_turns_by_the_place_of_the_seed(seeds: list[int]) -> None:
    """All runs as they would be carried out, composed as the command line composes them."""
    students = ["toy://standard/student", "toy://standard/student_2", "toy://standard/student_3"]
    line = CommandLine([], ["+experiment=which_way"], lambda overrides: composed(*overrides))
    config = composed(*line.overrides, "run.dir=study")
    arms = study_arms(config, line.overrides)
    of_seeds = study_students(config, arms, seeds, line.overrides)
    assert list(of_seeds.items()) == [(seed, students[place % 3]) for place, seed in enumerate(seeds)]
    runs = study_runs(config, arms[:2], seeds, line, of_seeds)
    assert [(run.arm, run.seed) for run in runs] == [(arm.name, seed) for seed in seeds for arm in arms[:2]]
    for run in runs:
        assert run.config.student.path == of_seeds[run.seed]
        carried_out = composed(*run.overrides)
        assert stored(carried_out, "train") == stored(run.config, "train")


@pytest.mark.unit
def test_without_students_an_arm_may_have_its_own() -> None:
    given = ["ablate.arms=[uniform,{name: small, student: toy_cross_scale}]"]
    line = CommandLine([], given, lambda overrides: composed(*overrides))
    config = composed(*given, "run.dir=study")
    arms = study_arms(config, given)
    assert study_students(config, arms, [1], given) == {}
    paths = {run.arm: run.config.student.path for run in study_runs(config, arms, [1], line, {})}
    assert paths == {"uniform": "toy://standard/student", "small": "toy://cross_scale/student"}


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


def test_stopped_it_leaves_no_process_and_resumes_exactly(study: Path, tmp_path: Path) -> None:
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
    assert process("ablate", *settings).returncode == 0
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


def test_a_failed_arm_is_reported_and_does_not_stop_the_others(
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


@pytest.mark.parametrize(("launcher", "seeds"), [("basic", [1, 2]), ("joblib", [1])])  # joblib's are new interpreters
def test_a_hydra_launcher_carries_the_runs_out(launcher: str, seeds: list[int], study: Path, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    folder, chosen = tmp_path / "study", (f"hydra/launcher={launcher}", f"ablate.seeds={seeds}".replace(" ", ""))
    done = process("ablate", *STUDY, "ablate.arms=[uniform]", *chosen, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    for seed in (f"seed-{number}" for number in seeds):  # a student each
        ours, theirs = (place / "runs" / "uniform" / seed / "final" for place in (folder, study))
        assert weights(ours) == weights(theirs)


# ---------------------------------------------------------------------------------------------- figures and words


@pytest.mark.unit
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


@pytest.mark.unit
def test_the_early_place_is_the_last_evaluation_up_to_the_step_that_one_included() -> None:
    curve = Curve((Point(0, 0, 0.2), Point(4, 100, 0.6), Point(8, 300, 0.5)))
    assert [early_place(curve, step, "steps") for step in (3, 4, 5, 7, 8, 9)] == [0, 4, 4, 4, 8, 8]
    assert [early_place(curve, step, "tokens") for step in (3, 4, 8)] == [0, 100, 300]


@pytest.mark.unit
def test_runs_of_one_seed_are_compared_at_the_same_places() -> None:
    """Those of the run with the fewest evaluations, up to where the first run ends; by hand on straight lines."""
    few = Curve((Point(0, 0, 0.0), Point(5, 100, 0.5), Point(10, 205, 1.025)))
    many = Curve(tuple(Point(step, 20 * step, 0.1 * step) for step in range(11)))
    assert common_grid([many, few], "tokens") == [0, 100, 200]
    found = study_figures({("uniform", 1): many, ("short", 1): few}, "uniform", 4, "tokens")
    assert found["uniform", 1] == pytest.approx({"before": 0, "early": 0.5, "best": 1.0, "final": 1.0, "auc": 0.5})
    assert found["short", 1] == pytest.approx({"before": 0, "early": 0.5, "best": 1.025, "final": 1.025, "auc": 0.5})
    # Where all have the same evaluations, figures are those of the curves themselves.
    alike = study_figures({("a", 1): many, ("b", 1): many}, "a", 4, "steps")
    assert alike["b", 1] == figures(many, 4, "steps")


def test_with_equal_tokens_more_evaluations_of_the_same_curve_are_no_advantage() -> None:
    """The null: both arms on one learning curve, 17 against 8 evaluations, each with noise of its own."""
    drawn, studies, seeds = random.Random(0), 50, AblateConfig().seeds
    # 1.1 million tokens, curves that bend early or late; each evaluation errs by as much as 512 samples make it.
    means: dict[str, list[float]] = {name: [] for name in COMPARED}
    called, called_before = 0, 0
    for study in range(studies):
        scale = (0.1, 0.33)[study % 2]

        def evaluated(count: int, scale: float = scale) -> Curve:
            inner = sorted((index + drawn.uniform(-0.05, 0.05)) / (count - 1) for index in range(1, count - 1))
            places = [0.0, *inner, 1 + drawn.uniform(0, 0.01)]
            accuracies = [0.25 + 0.7 * (1 - math.exp(-place / scale)) + drawn.gauss(0, 0.012) for place in places]
            spots = enumerate(zip(places, accuracies, strict=True))
            return Curve(tuple(Point(2 * step, round(1.1e6 * place), y) for step, (place, y) in spots))

        curves = {
            (arm, seed): evaluated(count) for seed in range(seeds) for arm, count in (("uniform", 17), ("long", 8))
        }
        found = study_figures(curves, "uniform", 8, "tokens")
        finished = {key: Finished(curve, found[key]) for key, curve in curves.items()}
        (judged,) = comparisons(["long"], "uniform", finished)
        called += any(judged[name]["verdict"] == "larger than the noise" for name in COMPARED)
        own = {key: Finished(curve, figures(curve, 500_000, "tokens")) for key, curve in curves.items()}
        (judged_before,) = comparisons(["long"], "uniform", own)
        called_before += judged_before["auc"]["verdict"] == "larger than the noise"
        for name in COMPARED:
            means[name].append(judged[name]["difference"])
    for name, values in means.items():
        assert abs(fmean(values)) < 4 * stdev(values) / math.sqrt(studies), name
    assert called <= 0.05 * studies + 3 * math.sqrt(0.05 * 0.95 * studies)
    assert called_before > 0.25 * studies, "looked at where each was evaluated, the area is a matter of how often"


def of_one_study(*differences: list[float]) -> list[str]:
    """The verdicts on arms whose figures all differ from the baseline's by these values, seed by seed."""
    finished = {}
    for arm, values in enumerate(([0.0] * len(differences[0]), *differences)):
        for seed, value in enumerate(values):
            finished[str(arm), seed] = Finished(Curve(()), dict.fromkeys(COMPARED, value))
    names = [str(arm) for arm in range(1, len(differences) + 1)]
    return [item["final"]["verdict"] for item in comparisons(names, "0", finished)]


@pytest.mark.unit
def test_verdicts_need_agreement_and_seeds_and_are_corrected_for_every_look() -> None:
    clear = [0.1, 0.12, 0.09, 0.11, 0.1, 0.13, 0.1, 0.09]
    noise = [0.1, -0.12, 0.09, -0.11, 0.1, 0.02, -0.1, 0.01]
    close = [0.1, 0.04, 0.09, 0.05, 0.1, -0.02, 0.12, -0.01]  # p = 0.031 by itself
    assert difference(clear)["verdict"] == "larger than the noise"
    assert difference(noise)["verdict"] == "inconclusive"
    assert difference(clear[:5])["verdict"] == "too few seeds"
    assert difference([0.1])["low"] is None
    assert difference([])["p"] is None
    # Of one sign, but one seed carries it.
    assert difference([0.0, 0.0, 0.0, 0.0, 0.5, 0.0])["verdict"] == "inconclusive"
    assert of_one_study(clear, noise) == ["larger than the noise", "inconclusive"]
    assert of_one_study(close) == ["larger than the noise"]
    others = [[sign * value for sign, value in zip(signs, close, strict=True)] for signs in
              ((1, -1, 1, 1, -1, 1, -1, -1), (1, 1, -1, -1, 1, 1, -1, 1), (-1, 1, 1, -1, 1, -1, 1, -1))]  # fmt: skip
    assert of_one_study(close, *others)[0] == "inconclusive"
    assert of_one_study(clear[:5], noise[:5]) == ["too few seeds"] * 2


@pytest.mark.unit
def test_a_default_study_can_call_something_larger_than_the_noise() -> None:
    seeds = AblateConfig().seeds
    drawn = random.Random(3)
    clear = [-0.34 + drawn.gauss(0, 0.02) for _ in range(seeds)]
    noise = [[drawn.gauss(0, 0.02) for _ in range(seeds)] for _ in range(2)]
    assert of_one_study(clear, *noise)[0] == "larger than the noise"


@pytest.mark.unit
@pytest.mark.parametrize(("count", "smallest"), [(5, "2/2⁵ = 0.0625"), (8, "2/2⁸ = 0.00781")])
def test_words_state_the_criterion_and_what_few_seeds_cannot_show(count: int, smallest: str) -> None:
    item = {"name": "iw", "baseline": "uniform", "seeds": list(range(count))}
    values = [0.1, 0.12, 0.09, 0.11, 0.1, 0.09, 0.08, 0.1][:count]
    found = {name: difference(values) for name in ("early", "best", "final", "auc")}
    results = {
        "early_step": 10, "match": "steps", "baseline": "uniform", "comparisons": [{**item, **found}], "failed": {},
        "students": [*"abcabcab"[:count]],
    }  # fmt: skip
    said = " ".join(verdicts(results))
    assert "p ≤ 0.05 after correction for all 4 differences of this study" in said
    assert smallest in said
    if count == 5:
        assert "5 seeds are too few to tell: step 10 (+0.104)" in said
        assert "nothing can be called larger than the noise. 6 seeds are the fewest that can" in said
    else:
        assert "iw against uniform: larger than the noise at step 10 (+0.099)" in said
        assert "The seeds vary prompts, sampling and the student (3 of them), not the teacher." in said
        said = " ".join(verdicts({**results, "students": ["a"] * count}))
        assert "The seeds vary prompts and sampling, not the pair of models." in said


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


@pytest.mark.browser
def test_the_report_opens_in_a_browser_without_requests_and_nothing_is_cut(study: Path, tmp_path: Path) -> None:
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
        [chromium(), *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    title = re.search(r"<title>(wide[^<]*)</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    assert title[1] == "wide false flat 0 out 0 asked 0"
