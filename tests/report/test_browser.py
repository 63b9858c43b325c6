"""Reports in a real Chromium: what a reader sees, by mouse and by keys. `make test-browser` gets what this needs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium
from support.report_runs import written_run
from support.running import SMALL, iwopd, rows

from iwopd.training.report import FILE, responses, write

pytestmark = pytest.mark.browser

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium with a profile of its own."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail("playwright is not installed: run `make test-browser`")
    with sync_playwright() as running:
        profile = tmp_path_factory.mktemp("profile")
        opened = running.chromium.launch_persistent_context(profile, executable_path=chromium(), args=FLAGS)
        yield opened
        opened.close()


class Reader:
    """A page that is open, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: Any = "light"):
        self.page, self.said, self.asked = browser.new_page(), list[str](), list[str]()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def text(self, selector: str, place: int = 0) -> str:
        return self.page.locator(selector).nth(place).inner_text()

    def shades(self, pane: int) -> list[str]:
        """How much each token that is there is coloured."""
        tokens = self.page.locator(".tokens").nth(pane).locator(".token")
        return tokens.evaluate_all("found => found.map(each => each.style.getPropertyValue('--shade'))")

    def choose(self, name: str, label: str) -> None:
        self.page.locator(f"select[name={name}]").select_option(label=label)
        self.page.wait_for_timeout(100)

    def tick(self, name: str, value: str) -> None:
        self.page.locator(f"input[name={name}][value={value}]").check()
        self.page.wait_for_timeout(100)


@pytest.fixture
def read(browser: Any) -> Iterator[Any]:
    """Opens pages: read(file, width=…, scheme=…). Nothing may be said on the console, or asked of a network."""
    opened = list[Reader]()

    def open_page(file: Path, **given: Any) -> Reader:
        opened.append(Reader(browser, file, **given))
        return opened[-1]

    yield open_page
    for reader in opened:
        reader.page.close()
        assert reader.said == []
        assert [url for url in reader.asked if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    assert iwopd("train", *SMALL, "run.samples=4", f"run.dir={folder}") == 0
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(trained: Path, read: Any, width: int, scheme: str) -> None:
    reader = read(trained / FILE, width=width, scheme=scheme)
    wide = reader.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    paper = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}[scheme]
    beside = [box["x"] for box in (each.bounding_box() for each in reader.page.locator(".pane").all())]
    assert (beside[0] < beside[1]) == (width > 390), "panes stand below each other on a narrow screen"
    small = reader.page.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, li, label, select, .token')].filter("
        "each => each.offsetParent && parseFloat(getComputedStyle(each).fontSize) < 12).length"
    )
    assert small == 0


def test_everything_has_a_name(trained: Path, read: Any) -> None:
    reader = read(trained / FILE)
    nameless = reader.page.evaluate(
        """() => [...document.querySelectorAll(
            'svg[role=img], canvas, button, select, input, [tabindex="0"]')].filter(each => {
          const ids = (each.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
          const said = ids.map(id => document.getElementById(id)?.textContent || '').join('');
          const label = each.closest('label')?.textContent || '';
          return !(said + (each.getAttribute('aria-label') || '') + label + (each.labels?.length ? 'x' : '')).trim();
        }).map(each => each.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    drawings = reader.page.locator("svg[role=img]").count()
    assert drawings >= 10
    assert reader.page.locator("svg[role=img] desc").count() == drawings


def test_keys_reach_everything_in_its_order(trained: Path, read: Any) -> None:
    reader, seen = read(trained / FILE), list[str]()
    for _ in range(14):
        reader.page.keyboard.press("Tab")
        name = "document.activeElement.name || document.activeElement.id || document.activeElement.className"
        seen.append(reader.page.evaluate(name) or reader.page.evaluate("document.activeElement.tagName"))
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert reader.page.evaluate(style) != "none", f"the focus on {seen[-1]} is seen"
    wanted = [
        "filter",
        "left",
        "right",
        "problem",
        "previous",
        "next",
        "colour",
        "scheme",
        "prompt",
        "tokens",
        "tokens",
    ]
    assert [name for name in seen if name in wanted] == wanted


def test_a_token_says_what_the_run_wrote(trained: Path, read: Any) -> None:
    reader = read(trained / FILE)
    row = next(row for row in rows(trained / "samples.jsonl") if row["step"] == 4)
    tokens = reader.page.locator(".tokens").nth(1)
    tokens.focus()
    for place, key in ((0, "Home"), (1, "ArrowRight"), (len(row["tokens"]) - 1, "End")):
        reader.page.keyboard.press(key)
        said = reader.text(".readout", 1).replace("−", "-").replace("\n", " ")
        assert f"token {place + 1} of {len(row['tokens'])}, {json.dumps(row['tokens'][place])}" in said
        for name, value in (
            ("student log π_θ", row["student_logprobs"][place]),
            ("teacher log π_T", row["teacher_logprobs"][place]),
            ("A_t", row["advantages"][place]),
            ("weight, as trained: iw", row["weights"][place]),
        ):
            shown = float(said.split(f"{name} ")[1].split()[0])
            assert shown == pytest.approx(value, abs=1.1e-3), name
    here = tokens.locator(".token.here")
    assert here.count() == 1
    assert here.get_attribute("data-i") == str(len(row["tokens"]) - 1)
    tokens.locator(".token").nth(2).hover()
    assert reader.text(".readout", 1).startswith("token 3 of")


def test_a_scheme_colours_by_its_weights(trained: Path, read: Any) -> None:
    """Of every scheme that the page offers, what a token's weight is said to be is what the weighting code makes."""
    reader = read(trained / FILE)
    found = [row for row in rows(trained / "samples.jsonl") if row["step"] == 4]
    expected = responses(found, {"scheme": "iw", "gamma": 0.5})[0]
    by_size = reader.shades(1)
    assert len(set(by_size)) > 3
    reader.tick("colour", "weight")
    assert reader.shades(1) != by_size
    offered = reader.page.locator("select[name=scheme] option").all_inner_texts()
    assert {"uniform", "first30", "last30", "iw", "pw", "prefix_boost"} <= set(offered)
    assert set(offered) == set(expected.weights)
    place = len(expected.tokens) // 2
    reader.page.locator(".tokens").nth(1).locator(".token").nth(place).hover()
    for scheme in offered:
        reader.choose("scheme", scheme)
        said = reader.text(".readout", 1).split(f"weight, {scheme} ")[1].split()[0]
        scale = max(1e-3, float(expected.weights[scheme].max() - expected.weights[scheme].min()) / 8000)
        assert float(said) == pytest.approx(expected.weights[scheme][place], abs=scale), scheme
    reader.choose("scheme", "first30")
    kept = -(-3 * len(expected.tokens) // 10)
    assert set(reader.shades(1)[:kept]) == {"100%"}
    assert set(reader.shades(1)[kept:]) == {"0%"}
    assert "first30" in reader.text("#scale-name")


def test_filters_choose_by_the_second_response(trained: Path, read: Any) -> None:
    reader = read(trained / FILE)
    after = [row for row in rows(trained / "samples.jsonl") if row["step"] == 4]
    for value, wanted in (
        ("right", [row for row in after if row["correct"]]),
        ("wrong", [row for row in after if not row["correct"]]),
        ("cut", [row for row in after if row["finish_reason"] == "length"]),
        ("all", after),
    ):
        reader.tick("filter", value)
        assert reader.page.locator("select[name=problem] option").count() == len(wanted)
        assert reader.text("#count") == f"{len(wanted)} of {len(after)} problems"
        if wanted:
            assert reader.text("#prompt") == wanted[0]["prompt"]
    first = reader.text("#prompt")
    reader.page.locator("button[name=next]").click()
    reader.page.wait_for_timeout(100)
    assert reader.text("#prompt") != first
    reader.page.locator("button[name=previous]").click()
    reader.page.wait_for_timeout(100)
    assert reader.text("#prompt") == first


def test_long_responses_are_made_as_they_are_read(tmp_path: Path, read: Any) -> None:
    folder = written_run(tmp_path / "run", kept=2, tokens=16384)
    write([folder], tmp_path / FILE)
    reader = read(tmp_path / FILE)
    assert 0 < reader.page.locator(".token").count() < 8000
    reader.page.locator(".tokens").first.focus()
    reader.page.keyboard.press("End")
    assert reader.text(".readout").startswith("token 16,384 of 16,384")
    box, last = reader.page.locator(".tokens").first.bounding_box(), reader.page.locator(".token.here").bounding_box()
    assert box["y"] <= last["y"] <= box["y"] + box["height"], "the token is in sight"
    reader.page.keyboard.press("ArrowUp")
    reader.page.keyboard.press("Home")
    reader.page.keyboard.press("n")
    place = int(reader.page.locator(".token.here").get_attribute("data-i"))
    gaps = [abs(value) for value in rows(folder / "samples.jsonl")[0]["advantages"]]
    assert gaps[place] >= sorted(gaps)[-170], "one of the hundredth that stands out"


def test_two_runs_are_put_beside_each_other(trained: Path, tmp_path: Path, read: Any) -> None:
    other = tmp_path / "other"
    assert iwopd("train", *SMALL, "weighting=first30", f"run.dir={other}") == 0
    write([trained, other], tmp_path / FILE)
    reader = read(tmp_path / FILE)
    assert [reader.text(".title", place) for place in (0, 1)] == ["smoke, after step 4", "other, after step 4"]
    reader.choose("left", "other, before training")
    assert reader.text(".title") == "other, before training"
    assert reader.page.locator("#accuracy polyline").count() == 2


def test_hostile_texts_are_shown_as_they_are(tmp_path: Path, read: Any) -> None:
    folder = written_run(tmp_path / "run", kept=1, tokens=2)
    evil = "</script><img src=x onerror=alert(1)>"
    found = [row | {"tokens": [evil, "\n"], "prompt": evil} for row in rows(folder / "samples.jsonl")]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    write([folder], tmp_path / FILE)
    reader = read(tmp_path / FILE)
    assert reader.text("#prompt") == evil
    assert reader.text(".token") == evil
