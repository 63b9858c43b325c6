"""Units after a number, as far as graders need them: 5 cm is 5, but not 5 m."""

import re

TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)\s*"
POWER = r"(?:\s*\^\s*\{?\s*([0-9])\s*\}?)?"
WRAPPED = re.compile(rf"^(.*?)\s*{TEXT}\{{\s*([A-Za-zµ°][A-Za-zµ° ./-]*?)\s*{POWER}\s*\}}{POWER}$", re.DOTALL)
BARE = re.compile(rf"^(.*?[0-9)}}])(\s*)([A-Za-z][A-Za-z. /-]*?){POWER}$", re.DOTALL)
DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|\^\s*\{?\s*\\degree\s*\}?|°)\s*([CF]?)$")
BASE = re.compile(r"^([0-9A-F]+)\s*_\s*\{?\s*([0-9]+)\s*\}?$")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
ANGLE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)")
PERCENT = re.compile(rf"\s*(?:\\?%|{TEXT}\{{\s*(?:\\?%|percent)\s*\}}|\bpercent)$")
CURRENCY = re.compile(r"^(-?)\s*(?:(\\\$)|(€|\\euro)|(£|\\pounds))\s*")

SHORT = {"cm", "mm", "m", "km", "kg", "g", "mg", "s", "h", "hr", "min", "sec", "in", "ft", "yd", "mi", "lb", "oz", "l"}
SHORT |= {"ml", "mph", "km/h", "m/s", "sq", "kph", "hz", "rad"}
SYNONYMS = {
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("kilometer", "kilometre"), "km"),
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("kilogram", "kilo"), "kg"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("hour", "hr"), "h"),
    **dict.fromkeys(("liter", "litre"), "l"),
    **dict.fromkeys(("usd", "buck"), "dollar"),
    "gram": "g", "minute": "min", "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "pound": "lb", "ounce": "oz", "degree": "°", "deg": "°", "radian": "rad",
}  # fmt: skip
MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
NOT_UNITS = {"or", "and", "to", "if", "for", "where", "when", "is", "are", "mod", "base", "factorial", "not", "of"}
NOT_UNITS |= {"sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi", "max", "gcd", "lcm", "choose", "squared", "cubed"}


def split_unit(text: str) -> tuple[str, str | None]:
    r"""An expression without the unit after it, and that unit in one spelling; None where there is none.

    "%" is a percentage, "units" of any kind are none, and words such as million become powers of ten. A bare letter
    counts as a unit only where it is one of the common ones: 5x is a product.
    """
    based = BASE.match(text)
    if based:
        return based[1], f"base {based[2]}"
    currency = CURRENCY.match(text)
    if currency:
        names = ("dollar", "euro", "pound sterling")
        return (
            currency[1] + split_unit(text[currency.end() :])[0],
            next(name for name, found in zip(names, currency.groups()[1:], strict=True) if found),
        )
    if TRIGONOMETRY.search(text):
        return ANGLE.sub(r"(\\frac{\1\\pi}{180})", text), None
    for pattern, name in ((PERCENT, "%"), (DEGREES, "°")):
        found = pattern.search(text)
        if found and text[: found.start()].strip():
            return text[: found.start()].strip(), name + (found[1] if pattern is DEGREES else "")
    return _split_words(text)


def _split_words(text: str) -> tuple[str, str | None]:
    wrapped, bare = WRAPPED.match(text), BARE.match(text)
    if wrapped:
        rest, words, power = wrapped[1], wrapped[2], wrapped[3] or wrapped[4]
    elif bare and _is_bare_unit(bare[3], spaced=bool(bare[2])):
        rest, words, power = bare[1], bare[3], bare[4]
    else:
        return text, None
    tokens = words.lower().replace(".", " ").split()
    if not tokens or tokens[0] in NOT_UNITS or not re.search(r"[0-9]|\\pi|\\sqrt", rest) or rest[-1] in "+-*/=<>^_,":
        return text, None
    if tokens[0] in MULTIPLES:
        rest, unit = _split_words(rest)[0], " ".join(tokens[1:])
        return rf"{rest}\times 10^{{{MULTIPLES[tokens[0]]}}}", _canonical(unit, power)
    return rest.strip(), _canonical(" ".join(tokens), power)


def _is_bare_unit(words: str, *, spaced: bool) -> bool:
    tokens = words.lower().replace(".", " ").split()
    return bool(tokens) and all(
        token in SHORT or (spaced and len(token.strip("-/")) >= 3 and token not in NOT_UNITS) for token in tokens
    )


def _canonical(words: str, power: str | None) -> str | None:
    squared = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3", "cu": "3"}
    kept: list[str] = []
    for word in words.lower().split():
        if word in squared:
            power = power or squared[word]
        else:
            single = word.removesuffix("s") if len(word) > 2 else word
            kept.append(SYNONYMS.get(single, SYNONYMS.get(word, single)))
    if not kept or kept == ["unit"]:
        return None
    return " ".join(kept) + (f"^{power}" if power else "")
