"""`iwopd diagnose`: its numbers against plain loops, its report as a browser sees it, and what it refuses."""

import json
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from support.browser import chromium
from support.records import plain_rollout
from support.running import SMALL, iwopd, process, refused
from transformers import OPTConfig, OPTForCausalLM

from iwopd.diagnose.advice import advise
from iwopd.diagnose.continuation import continuation_curve, curve_of
from iwopd.diagnose.figures import draw
from iwopd.diagnose.measure import by_position, log_ratio, measure, spending
from iwopd.diagnose.records import Continuation, Curve, Diagnosis, LogRatio
from iwopd.diagnose.report import report
from iwopd.evaluation.evaluate import Benchmark
from iwopd.evaluation.grading import ExactGrader
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.models.language_model import LanguageModel
from iwopd.report.page import figure, page
from iwopd.rollout.base import Sampling
from iwopd.rollout.fake import FakeEngine
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.fake import FakeTeacher
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.types import Prompt, Signal
from iwopd.weighting.presets import compared_schemes
from iwopd.weighting.pw import Pw
from iwopd.weighting.uniform import Uniform

QUICK = (*SMALL, "diagnose.prompts=8", "diagnose.continuations=6", "diagnose.examples=2")
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------- the numbers


@pytest.fixture(scope="module")
def rollouts(make_rollouts):
    return make_rollouts(9, seed=5, longest=23)


@pytest.fixture(scope="module")
def measured(tiny_model, rollouts):
    teacher = HfTeacher(tiny_model(1, vocabulary=64), CPU)  # with rows that the student has not
    return measure(
        tiny_model(0), teacher, rollouts, objective=Objective(Uniform(), ReverseKl()), top_k=4, batch_tokens=60
    )


@torch.no_grad()
def distributions(lm, rollout, size=50):
    """[response, vocabulary] log-probs, float64, from all logits at once."""
    ids = torch.tensor(rollout.ids())[None].long()
    logits = lm.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1, :size]
    return torch.log_softmax(logits.double(), -1)


def test_every_token_is_compared_as_by_plain_forwards(measured, rollouts, tiny_model):
    student, teacher = tiny_model(0), tiny_model(1, vocabulary=64)
    for row, rollout in enumerate(rollouts):
        p, q = distributions(student, rollout), distributions(teacher, rollout)
        at = torch.tensor(rollout.response_ids).long()[:, None]
        advantages = (q - p).gather(-1, at)[:, 0]
        sampler = torch.tensor(rollout.sampler_logprobs, dtype=torch.float64)
        expected = {
            "abs_advantage": advantages.abs(),
            "reverse_kl": (p.exp() * (p - q)).sum(-1),
            "entropy": -(p.exp() * p).sum(-1),
            "teacher_entropy": -(q.exp() * q).sum(-1),
            "sampler_gap": (p.gather(-1, at)[:, 0] - sampler).abs(),
        }
        for name, values in expected.items():
            found = measured.quantities[name][row][measured.mask[row]]
            torch.testing.assert_close(found.double(), values, rtol=1e-4, atol=1e-4, msg=name)


def test_a_teacher_without_distributions_gives_the_sampled_tokens_kl(tiny_model, rollouts):
    found = measure(
        tiny_model(0), FakeTeacher(-2.0), rollouts, objective=Objective(Uniform()), top_k=4, batch_tokens=60
    )
    assert set(found.quantities) == {"abs_advantage", "reverse_kl", "sampler_gap"}
    at = torch.tensor(rollouts[0].response_ids).long()[:, None]
    first = distributions(tiny_model(0), rollouts[0]).gather(-1, at)[:, 0]
    kl = found.quantities["reverse_kl"][0][found.mask[0]]
    torch.testing.assert_close(kl.double(), first + 2.0, rtol=1e-4, atol=1e-4)


def test_sums_by_position_agree_with_each_other(measured, rollouts):
    found = by_position(measured)
    tokens = [abs(value) for row, rollout in enumerate(rollouts) for value in advantages_of(measured, row, rollout)]
    assert found["mean"]["abs_advantage"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-5)
    absolute = sum(
        mean * count for mean, count in zip(found["absolute"]["abs_advantage"], found["counts"], strict=True)
    )
    assert absolute == pytest.approx(sum(tokens), rel=1e-5)
    early = sum(
        abs(value)
        for row, rollout in enumerate(rollouts)
        for t, value in enumerate(advantages_of(measured, row, rollout))
        if 10 * t // len(rollout.response_ids) < 3
    )
    assert sum(found["share"]["abs_advantage"][:3]) == pytest.approx(early / sum(tokens), rel=1e-5)


def advantages_of(measured, row, rollout):
    return measured.advantages[row, : len(rollout.response_ids)].tolist()


def test_log_ratios_end_at_the_sum_of_all_advantages(measured, rollouts):
    tokenizer = type("Letters", (), {"decode": staticmethod(lambda ids: f"<{ids[0]}>")})
    found = log_ratio(measured, tokenizer, examples=2)
    sums = sorted(sum(advantages_of(measured, row, rollout)) for row, rollout in enumerate(rollouts))
    assert found.mean[0] == 0
    assert found.mean[-1] == pytest.approx(sum(sums) / len(sums), rel=1e-5)
    assert found.quantiles["0.5"][-1] == pytest.approx(sums[4], rel=1e-5)
    assert [example["rollout"] for example in found.examples] == ["p0#0", "p1#1"]
    assert found.examples[0]["log_ratio"][-1] == pytest.approx(sum(advantages_of(measured, 0, rollouts[0])), abs=1e-4)
    assert found.examples[0]["tokens"][0] == f"<{rollouts[0].response_ids[0]}>"


def test_schemes_spend_their_weight_where_they_say(measured):
    found = spending(measured, compared_schemes(Uniform()))
    for name, item in found.items():
        assert sum(item.weight) == pytest.approx(1), name
        assert sum(item.advantage) == pytest.approx(1), name
        assert 0 < item.effective_sample_size <= 1 + 1e-9, name
    assert found["uniform"].effective_sample_size == pytest.approx(1)
    assert found["uniform"].advantage == pytest.approx(by_position(measured)["share"]["abs_advantage"], rel=1e-5)
    assert sum(found["iw"].weight[:5]) > sum(found["uniform"].weight[:5]) > sum(found["iw_reversed"].weight[:5])
    # Short responses keep a token at least, so a window reaches into the next tenths.
    assert sum(found["first30"].weight[:4]) > 0.8 > 0.2 > sum(found["last30"].weight[:4])


def test_the_scheme_chosen_is_shown_as_it_is_and_others_where_the_signal_allows():
    assert compared_schemes(Pw(middle=0.6))["pw"] == Pw(middle=0.6)
    measured, signals = {"tip", "select_verify"}, (Signal(), Signal("top_k", 4), Signal("top_k", 5), Signal("full"))
    shown = [measured & compared_schemes(Uniform(), signal).keys() for signal in signals]
    assert shown == [set(), {"tip"}, measured, measured]


def test_continuations_are_fed_ids_and_share_the_rollouts_limit(make_rollouts):
    rollouts = [replace(rollout, sample=0) for rollout in make_rollouts(5, seed=1, longest=20)]
    fed = []

    class Recording(FakeEngine):
        def generate(self, prompts, sampling, **options):
            fed.append(([prompt.ids for prompt in prompts], sampling))
            return super().generate(prompts, sampling, **options)

    texts = []

    def decode(ids):
        texts.append(list(ids))
        return "right" if len(ids) % 2 else "wrong"

    prompts = [Prompt(rollout.prompt_id, rollout.prompt_ids.tolist(), "", answer="right") for rollout in rollouts]
    benchmark = Benchmark("b", prompts, ExactGrader())
    curve = continuation_curve(
        Recording(length=6), benchmark, rollouts, Sampling(n=3, max_tokens=22), seed=0, decode=decode
    )
    assert len(fed) == 10, "at 100 % nothing is left to be written"
    for point, (ids, sampling) in enumerate(fed):
        sizes = [len(rollout.response_ids) * point // 10 for rollout in rollouts]
        assert ids == [item.ids(k).tolist() for item, k in zip(rollouts, sizes, strict=True)]
        assert (sampling.n, sampling.max_tokens) == (1, 22 - min(sizes))
        for item, k, text in zip(rollouts, sizes, texts[5 * point :], strict=False):
            assert text[:k] == item.response_ids[:k].tolist()
            assert len(text) == min(22, k + min(6, 22 - min(sizes)))
    own = [len(rollout.response_ids) % 2 for rollout in rollouts]
    assert curve.accuracy[-1] == sum(own) / 5
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.accuracy, curve.high, strict=True))


class Long(FakeEngine):
    """Never stops; keeps what it was asked."""

    def __init__(self):
        super().__init__(length=1000)
        self.asked = []

    def generate(self, prompts, sampling, **options):
        self.asked.append(([len(prompt.ids) for prompt in prompts], sampling.max_tokens))
        return super().generate(prompts, sampling, **options)


@pytest.mark.parametrize("context", [None, 40, 30])
def test_continuations_are_cut_at_the_limit_and_stay_within_the_context(context):
    """Rows share a call, so the shortest prefix decides how much is written: the others' surplus is cut off."""
    lengths, prompts = [20, 3, 11, 20, 7], [10, 4, 10, 2, 9]
    rollouts = [
        plain_rollout([1] * prompt, range(length), prompt_id=f"p{index}")
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    engine, texts = Long(), []

    def decode(ids):
        texts.append(list(ids))
        return "right"

    benchmark = Benchmark(
        "b", [Prompt(item.prompt_id, item.prompt_ids.tolist(), "", answer="right") for item in rollouts], ExactGrader()
    )
    curve = continuation_curve(
        engine, benchmark, rollouts, Sampling(max_tokens=20), seed=0, decode=decode, context=context
    )
    assert [len(text) for text in texts[:-5]] == [20] * 50
    for point in range(10):
        for row, text in enumerate(texts[5 * point : 5 * point + 5]):
            size = lengths[row] * point // 10
            assert text[:size] == list(range(size)), "answers stand in the order of the rollouts"
    longest = max(max(lengths) + written for lengths, written in engine.asked)
    assert longest <= context if context else longest > 40
    assert len(engine.asked) == 10 if context is None else len(engine.asked) > 10
    assert curve.right == [[1] * 5] * 11


def test_a_model_whose_context_the_rollouts_fill_is_continued_within_it(make_rollouts):
    """A position beyond OPT's table is an IndexError."""
    config = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=32, word_embed_proj_dim=16)  # fmt: skip
    model = LanguageModel(OPTForCausalLM(config))
    rollouts = [replace(item, sample=0) for item in make_rollouts(6, seed=2, longest=25)]
    prompts = [Prompt(item.prompt_id, item.prompt_ids.tolist(), "", answer="x") for item in rollouts]
    curve = continuation_curve(
        HfEngine(model, stop_ids=[]), Benchmark("b", prompts, ExactGrader()), rollouts, Sampling(max_tokens=25), seed=0,
        decode=str, context=32,
    )  # fmt: skip
    assert curve.accuracy == [0.0] * 11


# ---------------------------------------------------------------------------------------------- words


def answered(accuracies, prompts, seed=None):
    """A curve with such accuracies: the first prompts are right, or, with a seed, any prompts by chance alone."""
    if seed is None:
        right = [[int(place < round(accuracy * prompts)) for place in range(prompts)] for accuracy in accuracies]
    else:
        drawn = random.Random(seed)
        right = [[int(drawn.random() < accuracy) for _ in range(prompts)] for accuracy in accuracies]
    return curve_of(right)


def diagnosis(teacher=None, student=0.2, advantage=None, gap=1e-6, prompts=100, kl=None) -> Diagnosis:
    """`teacher` is accuracies or a curve; so is `student`, or one accuracy."""
    share = advantage or [0.1] * 10
    continuation = None
    if teacher:
        ours = [student] * 11 if isinstance(student, float) else student
        curves = [item if isinstance(item, Curve) else answered(item, prompts) for item in (teacher, ours)]
        continuation = Continuation(prompts, [f"p{place}" for place in range(prompts)], *curves)
    return Diagnosis(
        name="before training",
        step=0,
        rollouts=100,
        tokens=5000,
        length=50.0,
        truncated=0.0,
        full_vocabulary=kl is None,
        top_k=5,
        mean={"abs_advantage": 1.0, "reverse_kl": 0.9 if kl is None else 0.003, "sampler_gap": gap},
        relative={},
        width=1,
        absolute={},
        counts=[],
        share={"abs_advantage": share, "reverse_kl": kl or share},
        log_ratio=LogRatio([-10.0 * point for point in range(11)], {}, []),
        weighting={},
        continuation=continuation,
    )


@pytest.mark.process
def test_advice_sees_position_bias_and_its_absence():
    biased = advise(diagnosis([1.0, 0.6, 0.35, 0.3, *[0.2] * 7]))
    assert biased[0].startswith("Position bias: the teacher answers 100% right from the prompt and 30% from 30 %")
    assert "beyond the noise from 10 % on" in biased[0]
    assert "worth generating to about 30 % of their length (15 tokens)" in biased[2]
    assert "0.80 from the prompt (paired p = 5e-05), is 0.10 or less, beyond the noise under a quarter" in biased[2]
    flat = advise(diagnosis([0.9] * 11))
    assert flat[0].startswith("Little position bias")
    assert "generate whole rollouts" in flat[2]
    late = advise(diagnosis([*[0.9] * 6, *[0.4] * 5]))
    assert late[0].startswith("Position bias late in a response")
    assert "40% from 60 %, which is beyond it" in late[0]


@pytest.mark.process
def test_a_fall_is_judged_prompt_by_prompt():
    """.80 → .69 of 128 prompts, where the same prompts are answered: marginal intervals overlap, the fall is clear."""
    teacher = answered([0.8, 0.77, 0.73, *[0.69] * 8], 128)
    assert teacher.high[3] > teacher.low[0]
    said = advise(diagnosis(teacher, prompts=128))
    assert said[0].startswith("Position bias: the teacher answers 80% right from the prompt and 69% from 30 %")
    assert "the fall is beyond the noise from 20 % on (paired p = 0.000" in said[0]
    # The same accuracies, of which the prompts know nothing of each other: within the noise.
    shuffled = [random.Random(point).sample(right, 128) for point, right in enumerate(teacher.right)]
    assert advise(diagnosis(replace(teacher, right=shuffled), prompts=128))[0].startswith("Little position bias")


@pytest.mark.process
def test_with_nothing_to_be_found_advice_finds_something_in_few_draws():
    """A teacher that is the student, whose answers know nothing of the position: no fall and no head start in 95 %."""
    fell = ahead = 0
    for seed in range(80):
        teacher, student = (answered([0.5] * 11, 12, seed=2 * seed + who) for who in (0, 1))
        bias, _, length, _ = advise(diagnosis(teacher, student, prompts=12))
        fell += not bias.startswith("Little position bias")
        ahead += "head start" in length
    assert fell <= 0.05 * 80 + 3 * (0.05 * 0.95 * 80) ** 0.5
    assert ahead <= 0.025 * 80 + 3 * (0.025 * 0.975 * 80) ** 0.5


def test_how_long_the_head_start_lasts_may_be_beyond_what_the_prompts_can_tell():
    teacher, student = answered([0.7, *[0.42] * 10], 30), answered([0.3] * 11, 30)
    assert "cannot be said with 30 prompts" in advise(diagnosis(teacher, student, prompts=30))[2]


def test_advice_without_continuations_says_what_is_not_known():
    said = advise(diagnosis(advantage=[0.5, 0.3, *[0.025] * 8]))
    assert "was not measured" in said[0]
    assert "80 % of |A| lies in the first 20% (10 tokens)" in said[2]
    assert "keeps 82% of |A|" in said[1]
    assert "2.8 times the average" in said[1]


def test_advice_gives_no_share_of_a_sum_whose_parts_cancel():
    said = advise(diagnosis(kl=[None] * 10))[1]
    assert "keeps 30% of |A| on 15 of 50 tokens (no share of Σ−A" in said
    assert "0.003 nats per token" in said


def test_advice_names_a_teacher_that_is_no_better_and_a_noisy_engine():
    assert "little to distil" in advise(diagnosis([0.2] * 11))[2]
    assert "worse than the student" in advise(diagnosis([0.1] * 11, 0.4))[2]
    assert "the models', not the engine's" in advise(diagnosis())[3]
    assert "25.0% of |A|" in advise(diagnosis(gap=0.25))[3]
    assert "is noise" in advise(diagnosis(gap=0.25))[3]


# ---------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def made(smoke_models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose") / "pair"
    assert iwopd("diagnose", *QUICK, f"run.dir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def trained(smoke_models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose") / "trained"
    assert iwopd("train", *SMALL, "run.steps=2", "run.save_every=1", f"run.dir={folder}") == 0
    return folder


@pytest.mark.process
def test_what_a_diagnosis_leaves(made):
    left = {entry.name for entry in made.iterdir() if not entry.name.startswith(".")}
    assert {"diagnose.json", "report.html", "figures", "config.yaml", "about.json"} <= left
    names = {"continuation", "relative", "absolute", "log_ratio", "weighting", "noise"}
    assert {file.name for file in (made / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    content = json.loads((made / "diagnose.json").read_text())
    (student,) = content["students"]
    assert (content["prompts"], student["rollouts"], student["continuation"]["prompts"]) == (8, 8, 6)
    assert len(content["advice"]) == 4
    assert len(student["log_ratio"]["examples"]) == 2
    assert student["mean"]["sampler_gap"] < 1e-4 < student["mean"]["abs_advantage"]
    teacher, ours = student["continuation"]["teacher"], student["continuation"]["student"]
    assert teacher["accuracy"][-1] == ours["accuracy"][-1]
    assert len(student["continuation"]["prompt_ids"]) == 6
    for curve in (teacher, ours):
        assert [sum(right) / 6 for right in curve["right"]] == curve["accuracy"]


@pytest.mark.process
def test_a_run_is_diagnosed_at_every_step_it_kept(trained, tmp_path, capsys):
    folder = tmp_path / "steps"
    assert iwopd("diagnose", *QUICK, "diagnose.continuations=0", f"diagnose.run={trained}", f"run.dir={folder}") == 0
    assert "keeps 2 checkpoints only (step 1, 2); train with run.keep=0" in capsys.readouterr().out
    content = json.loads((folder / "diagnose.json").read_text())
    assert [student["step"] for student in content["students"]] == [0, 1, 2]
    means = [student["mean"]["abs_advantage"] for student in content["students"]]
    assert len(set(means)) == 3, "each step has weights of its own"
    assert content["students"][0]["continuation"] is None
    assert not (folder / "figures" / "continuation.svg").exists()


@pytest.mark.process
def test_prompts_need_no_answers_where_nothing_is_continued(made, tmp_path):
    """And the same pair gives the same numbers twice."""
    settings = ("eval.benchmarks.smoke.answer_column=null", "diagnose.continuations=0")
    assert iwopd("diagnose", *QUICK, *settings, f"run.dir={tmp_path / 'run'}") == 0
    found, with_answers = (
        json.loads((folder / "diagnose.json").read_text())["students"][0]["mean"] for folder in (tmp_path / "run", made)
    )
    assert found == with_answers


# ---------------------------------------------------------------------------------------------- the page


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.process
def test_the_report_is_whole_in_itself_and_readable_by_everyone(made):
    text = (made / "report.html").read_text()
    elements = Elements(text).found
    drawings = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(drawings) == 6
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 40 for drawing in drawings)
    identities = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    references = {value for _, attributes in elements for key, value in attributes.items() if key.endswith("href")}
    references |= set(re.findall(r"url\(([^)]*)\)", text))
    assert references, "matplotlib's glyphs are referred to"
    assert {reference.removeprefix("#") for reference in references} <= set(identities)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements}
    assert "prefers-color-scheme: dark" in text
    assert text.count("currentColor") > 50, "axes and text take the page's ink"
    assert "@import" not in text


@pytest.mark.process  # matplotlib and five figures
def test_a_teacher_without_distributions_is_drawn_too(tiny_model, rollouts, tmp_path):
    """No entropies, no overlap, no continuations: the report shows what there is."""
    measured = measure(
        tiny_model(0), FakeTeacher(-2.0), rollouts, objective=Objective(Uniform()), top_k=4, batch_tokens=60
    )
    found = replace(
        diagnosis(),
        **by_position(measured),
        full_vocabulary=False,
        log_ratio=log_ratio(measured, None, examples=0),
        weighting=spending(measured, compared_schemes(Uniform())),
    )
    figures = draw([found], tmp_path / "figures")
    assert [item.name for item in figures] == ["relative", "absolute", "log_ratio", "weighting", "noise"]
    about = {"student": "ours", "teacher": "theirs", "run": None, "prompts": 9}
    text = report(about, [found], advise(found), [], figures)
    assert "of the sampled tokens (the teacher gives no more)" in text
    assert "entropy" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S)


def test_words_in_a_page_are_not_markup():
    text = page("a < b", [figure("x", '<?xml?><svg width="9pt" id="y"><g/></svg>', 'say "no" & <go>', "c < d")])
    assert "<title>a &lt; b</title>" in text
    assert 'aria-label="say &quot;no&quot; &amp; &lt;go&gt;"' in text
    assert '<svg id="x-y" role="img"' in text


# Runs in the page: what is wider than the window, and drawn text that leaves its drawing.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, cut = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (frame.width < 100 || frame.height < 100) cut.push("small drawing");
    for (const text of svg.querySelectorAll("g[id*=text_]")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) cut.push(text.id);
    }
  }
  const requests = performance.getEntriesByType("resource").map(entry => entry.name);
  document.body.innerHTML = "FOUND" + JSON.stringify({wide: root.scrollWidth - root.clientWidth, cut, requests,
    ink: getComputedStyle(document.body).color}) + "END";
})</script>"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1000, False), (1000, True), (480, False)])
def test_a_browser_shows_the_report_whole(made, tmp_path, width, dark):
    probed = tmp_path / "report.html"
    text = (made / "report.html").read_text().replace("<details>", "<details open>")
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"))
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*command, f"file://{probed}"], capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"FOUND(.*)END", done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1])
    assert (seen["wide"], seen["cut"], seen["requests"]) == (0, [], [])
    assert seen["ink"] == ("rgb(228, 232, 238)" if dark else "rgb(29, 36, 48)")


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.cli
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["eval.benchmarks.smoke.answer_column=null"],
            "eval.benchmarks.smoke.answer_column=null: continuation accuracy needs answers",
        ),
        (["diagnose.benchmark=aime"], "diagnose.benchmark=aime: no such benchmark; choose one of smoke"),
        (["diagnose.run=/none"], "diagnose.run=/none: holds no run"),
        (["diagnose.prompts=0"], "diagnose.prompts=0: must be at least 1"),
        (["student.path=/none"], "student.path=/none: does not exist"),
    ],
)
def test_bad_input_is_one_line(settings, said, tmp_path, capsys):
    line = refused(capsys, "diagnose", *QUICK, f"run.dir={tmp_path / 'run'}", *settings)
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_a_run_of_another_pair_or_verb_is_refused(trained, made, tmp_path, capsys):
    folder = f"run.dir={tmp_path / 'run'}"
    other = refused(capsys, "diagnose", *QUICK, f"diagnose.run={trained}", "teacher.path=toy://smoke/student", folder)
    assert "was trained with other settings; add teacher.path=toy://smoke/teacher" in other
    assert "is a run of iwopd diagnose; name a training run" in refused(
        capsys, "diagnose", *QUICK, f"diagnose.run={made}", folder
    )
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    shutil.rmtree(bare / "checkpoints")
    assert "has no whole checkpoint" in refused(capsys, "diagnose", *QUICK, f"diagnose.run={bare}", folder)


@pytest.mark.cli
def test_a_missing_matplotlib_is_reported_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("iwopd.preflight.packages.find_spec", lambda name: None)
    line = refused(capsys, "diagnose", *QUICK, f"run.dir={tmp_path / 'run'}", "student.path=/none")
    assert "matplotlib is not installed; pip install 'iwopd[report]'" in line


@pytest.mark.process
def test_what_can_be_refused_is_refused_before_torch(tmp_path):
    for heavy in ("torch", "transformers"):
        (tmp_path / f"{heavy}.py").write_text(f"raise RuntimeError('{heavy} was imported')")
    for setting in ("eval.benchmarks.toy.answer_column=null", "diagnose.run=/none", "diagnose.benchmark=x"):
        done = process("diagnose", setting, cwd=tmp_path, fresh=True, PYTHONPATH=str(tmp_path))
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("iwopd: ")
        assert len(done.stderr.splitlines()) == 1
