"""Charts as SVG: they parse, say what they show, and leave out what cannot be drawn."""

import math
import re
from xml.etree import ElementTree

import pytest

from iwopd.report.charts import Chart, Line, drawn, number, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def svg_of(chart: Chart) -> ElementTree.Element:
    found = re.search(r"<svg viewBox=\"0 0 4.*?</svg>", drawn(chart), re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def line(*ys: float, label: str = "mean", **band: list[float]) -> Line:
    return Line(label, [float(x) for x in range(len(ys))], list(ys), **band)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 48, [0, 10, 20, 30, 40]),
        (-0.3, 0.2, [-0.3, -0.2, -0.1, 0, 0.1, 0.2]),
        (0, 2e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (1000, 1000, [1000]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1e-5, "1e-5"), (16384, "16,384"), (5.76e8, "5.76e8"), (math.nan, "–")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_points_lie_where_their_numbers_are() -> None:
    svg = svg_of(Chart("a", "A", "step", "nats", [line(0.0, 1.0, 0.5)], y_from=0, y_to=1))
    [polyline] = svg.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in polyline.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0, "up is more"
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)


def test_a_log_axis_spaces_decades_alike_and_has_no_place_for_zero() -> None:
    svg = svg_of(Chart("a", "A", "step", "nats", [line(1e-3, 0.0, 1e-2, 1e-1)], log=True))
    [polyline] = svg.iter(f"{SVG}polyline")
    ys = [float(pair.split(",")[1]) for pair in polyline.attrib["points"].split()]
    assert len(ys) == 3
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_who_cannot_see_it_is_told() -> None:
    svg = svg_of(Chart("reverse-kl", "Reverse KL", "step", "nats per token", [line(1.5, 0.25, 0.5, label="run a")]))
    assert svg.attrib["role"] == "img"
    named = {each.attrib["id"]: each.text for each in svg if "id" in each.attrib}
    assert [named[name] for name in svg.attrib["aria-labelledby"].split()] == [
        "Reverse KL",
        "nats per token over step 0 to 2. run a: from 1.5 to 0.5, lowest 0.25, highest 1.5.",
    ]


def test_labels_from_outside_are_text() -> None:
    evil = "</svg><script>alert(1)</script>"
    page = drawn(Chart("a", "A", "step", "nats", [line(1, 2, label=evil), line(2, 1, label="b")]))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_what_is_not_finite_is_left_out() -> None:
    assert drawn(Chart("a", "A", "step", "nats", [line(math.nan, math.inf)])) == ""
    svg = svg_of(Chart("a", "A", "step", "nats", [line(1.0, math.nan, 2.0)]))
    [polyline] = svg.iter(f"{SVG}polyline")
    assert "nan" not in polyline.attrib["points"]
    assert len(polyline.attrib["points"].split()) == 2


def test_one_value_for_all_is_drawn() -> None:
    svg_of(Chart("a", "A", "step", "nats", [line(1e-5, 1e-5)], y_from=0))
    svg_of(Chart("a", "A", "step", "nats", [line(0.0)], y_from=0))
    svg_of(Chart("a", "A", "step", "nats", [line(1.0, 1.0)], log=True))


def test_many_points_become_their_means() -> None:
    long = Line("a", list(map(float, range(1000))), [float(x % 2) for x in range(1000)], [0.0] * 1000, [1.0] * 1000)
    short = thinned(long, 300)
    assert len(short.x) == len(short.y) == 250
    assert set(short.y) == {0.5}
    assert short.x[:2] == [1.5, 5.5]
    assert thinned(short, 300) is short
    assert "A point is the mean of 4 steps." in drawn(Chart("a", "A", "step", "nats", [long]))
