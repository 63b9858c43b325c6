"""The page's colours can be read: contrasts after WCAG 2.2, from the style sheets, in both themes."""

import re

import pytest
from support.paths import SOURCE

from iwopd.report import page

LINES = [f"c{number}" for number in range(6)]
SHADES = ["advantage", "weight", "both"]


def variables(scheme: str) -> dict[str, str]:
    """The colours by name; those of the dark theme are in a media query and outweigh the others."""
    css = page.STYLE + (SOURCE / "report" / "run.css").read_text(encoding="utf-8")
    dark = "".join(re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", css, re.DOTALL))
    light = re.sub(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", "", css, flags=re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return found if scheme == "light" else found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out(scheme: str) -> None:
    colours = variables(scheme)
    for text in ("ink", "soft", "right", "wrong"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    assert contrast(colours["soft"], colours["tint"]) >= 4.5
    for line in LINES:
        assert contrast(colours[line], colours["paper"]) >= 3, line


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shade", SHADES)
def test_a_token_is_read_however_it_is_coloured(scheme: str, shade: str) -> None:
    colours = variables(scheme)
    assert contrast(colours["ink"], colours[shade]) >= 4.5
    assert contrast(colours[shade], colours["paper"]) >= 1.5, "and is told from one that is not"
