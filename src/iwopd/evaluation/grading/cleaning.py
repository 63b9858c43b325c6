r"""One spelling for what mathematicians write in many: layout, spaces, digits, fractions, words."""

import re

from iwopd.evaluation.grading.units import TEXT

SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "∞": r"\infty ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "",
    "，": ",", "（": "(", "）": ")", "％": "%", "＝": "=",
}  # fmt: skip
SYMBOL = re.compile("|".join(map(re.escape, SYMBOLS)))
WIDE_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
RULES = [
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda match: "^{" + match[0].translate(SUPERSCRIPTS) + "}"),
    (r"√\s*\(([^()]*)\)|√\s*(\d+|[a-z])", lambda match: rf"\sqrt{{{match[1] or match[2]}}}"),
    (r"(?<!\\)(?:\$|\\[()\[\]])", ""),  # delimiters of math mode
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:display|text|script)style(?![a-zA-Z])|\\(?:limits|nolimits|rm|bf|it)(?![a-zA-Z])|\\phantom\{[^{}]*\}", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
    (r"\\neq(?![a-zA-Z])", r"\\ne "),
    (r"\\(?:varnothing)(?![a-zA-Z])", r"\\emptyset "),
    # Thousands: 1{,}000 and 1\,000; after a leading zero, or before other than three digits, it is a decimal comma.
    (
        r"(?<![\d.])([1-9]\d{0,2})((?:(?:\{,\}|\\[,!:;]|,\\!)\s*\d{3})+)(?!\d)",
        lambda match: match[1] + re.sub(r"\D", "", match[2]),
    ),
    (r"(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?![\d ])", lambda match: match[0].replace(" ", "")),
    (r"(?<=\d)\{,\}(?=\d)", "."),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\(?:[,:; ]|quad|qquad|hspace\{[^{}]*\})(?![a-zA-Z])|~|&nbsp;", " "),
    (r"\*\*(?=.*\*\*)|(?<=\S)\*\*$|\\(?:text)?color\{\w+\}|^\s*(?:\\approx|≈|=)", ""),
    (r"\*\*", "^"),
    (r"(?<=[\w)])\s*\*\s*(?=[\w(\\])", r"\\cdot "),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"\\mathbb\s*(?:\{R\}|R(?![a-z]))", r"(-\\infty,\\infty)"),
    (r"\\\{\s*\\\}", r"\\emptyset "),
    (rf"(\d)\s*{TEXT}\{{\s*\}}", r"\1"),
    (r"\s+", " "),
]  # fmt: skip
COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in RULES]
WRAPPED = re.compile(rf"^(?:{TEXT}|\\underline\s*)\{{([^{{}}]*)\}}$")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}")
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "frac", "infty", "pi", "theta"}
SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip


def clean(text: str) -> str:
    """The text without layout: math delimiters, sizes, spacing; unicode as LaTeX; final punctuation off."""
    text = SYMBOL.sub(lambda match: SYMBOLS[match[0]], text).translate(WIDE_DIGITS)
    for pattern, replacement in COMPILED:
        text = pattern.sub(replacement, text)
    text = BOXED.sub(r"\1", text).strip()
    while (match := WRAPPED.match(text)) is not None:
        text = match[1].strip()
    if re.match(r"^\{(?:[^{}]|\{[^{}]*\})*\}$", text):
        text = text[1:-1].strip()
    text = re.sub(r"(?<=.)\s*(?:\\\\|[.,;:])+$", "", text).strip()
    return number_words().get(text.lower(), text)


def number_words() -> dict[str, str]:
    """The small numbers written out."""
    return {word: str(value) for value, word in enumerate(SMALL)}


def as_words(text: str) -> str | None:
    r"""What the text says where it is words and no formula, in lower case; None for a formula.

    Written with ``\text``, or at least four letters long, or yes and no: shorter ones may be products of variables.
    """
    bare = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", text)
    if not re.fullmatch(r"[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f' ,.-]*", bare.strip()):
        return None
    words = re.findall(r"[^\W\d_']+", bare.lower())
    plain = bare == text and not any(len(word) >= 4 for word in words)
    if plain and not (set(words) <= {"yes", "no", "on", "odd", "all"} or (len(words) > 1 and len("".join(words)) > 4)):
        return None
    if any(word in FUNCTIONS for word in words):
        return None
    return " ".join(word for word in words if word not in ("the", "a", "an") or len(words) == 1)


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: A, (A), A. five, \\text{(A) } 5; None where it is none."""
    bare = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", text).strip()
    match = re.match(r"^(?:\(\s*([A-Za-z])\s*\)|([A-Za-z])(?=[.:)]|\s*$))(?:[.:)]*(?:\s.*)?)$", bare, re.DOTALL)
    return (match[1] or match[2]).upper() if match else None
