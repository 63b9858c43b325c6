r"""Is an answer the reference? What the notation decides is decided here; `equal` compares the rest.

Sets, tuples, intervals and lists are compared element by element, because math-verify takes (1,2), {1,2} and "1,2" for
the same; numbers exactly, because it rounds. Asked of `equal` are pairs of single expressions, in LaTeX.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from iwopd.evaluation.grading.cleaning import as_words, choice, clean
from iwopd.evaluation.grading.units import TEXT, split_unit

Equal = Callable[[str, str], bool]

LONGEST = 1000  # characters of an expression that is worth working out
READ = 4000  # characters of an answer that is worth reading
LARGEST = 10_000  # power of ten of a number that is worked out exactly here
DEEPEST = 40  # braces within braces
NUMBER = r"(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)"
SCALAR = re.compile(
    rf"^([+-]*)\s*({NUMBER})(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*([+-]?\d+)\s*\}}|(\d))|[eE]([+-]?\d+))?$"
)
POWER = re.compile(r"^([+-]*)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))$")
RATIO = re.compile(
    rf"^([+-]*)\s*(\d+)??\s*(?:\\frac\s*(?:\{{\s*([+-]?{NUMBER})\s*\}}|(\d))\s*(?:\{{\s*([+-]?{NUMBER})\s*\}}|(\d)))$"
)
SLASHED = re.compile(rf"^([+-]*)\s*(?:(\d+) +)?\(?([+-]?{NUMBER})\)?\s*/\s*\(?([+-]?{NUMBER})\)?$")
NAME = re.compile(  # possessive throughout: long near misses must not be tried in every way
    rf"^(?:{TEXT}\{{[^{{}}]*+\}}|[A-Za-z|'+\- ]|\\(?!frac|sqrt|log|ln|binom)[A-Za-z]++"
    r"|_\{?[A-Za-z0-9]++\}?|\([\w, =+-]*+\)|\\frac\{[A-Za-z]++\}\{[A-Za-z]++\})++$"
)
PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
OPEN = {"]": "(", "[ ": ")"}  # ]1,2[ is how some write (1,2)
REPEATING = re.compile(r"^([+-]*)\s*(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}$")
RELATION = re.compile(r"<|>|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|\\in(?![a-z])")


def compare(answer: str, reference: str, equal: Equal) -> bool:
    """The verdict on an answer, as a mathematician gives it.

    Args:
        equal: (answer, reference) of two single expressions; it may raise.
    """
    if max(len(answer), len(reference)) > READ:
        return answer.strip() == reference.strip()
    answer, reference = clean(answer), clean(reference)
    if not answer or not reference:
        return False
    if _squeezed(answer) == _squeezed(reference):
        return True
    wanted = choice(reference) if re.fullmatch(r"\(?[A-Z]\)?", reference) else None
    if wanted is not None:
        return choice(answer) == wanted
    words = as_words(reference), as_words(answer)
    if words[0] is not None or words[1] is not None:
        return words[0] == words[1]
    return _compare_shapes(answer, reference, equal)


def _compare_shapes(answer: str, reference: str, equal: Equal) -> bool:
    if "=" in answer or "=" in reference:
        settled = _compare_equations(answer, reference, equal)
        if settled is not None:
            return settled
    if r"\cup" in answer + reference:
        parts = [_without_membership(side).split(r"\cup") for side in (answer, reference)]
        # x < 1 or x > 2 is a union, too.
        mine, theirs = (shape(part[0])[1] if len(part) == 1 else part for part in parts)
        if len(mine) == len(theirs):
            return _same_members(mine, theirs, equal)
    (kind, mine), (wanted, theirs) = shape(_without_membership(answer)), shape(_without_membership(reference))
    if kind == wanted == "one":
        return _compare_single(answer, reference, equal)
    if "one" in (kind, wanted) and (
        RELATION.search(answer) or RELATION.search(reference) or r"\cup" in answer + reference
    ):
        return _asked(answer, reference, equal)
    if {kind, wanted} <= {"set", "list", "one"}:
        return _same_members(mine, theirs, equal)
    if {kind, wanted} == {"list", "()"} or kind == wanted:
        return len(mine) == len(theirs) and all(map(lambda a, r: compare(a, r, equal), mine, theirs))
    return False


def readable(reference: str, parse: Callable[[str], bool]) -> bool:
    """True where answers can be compared with a reference, and not only its spelling with theirs.

    Args:
        parse: says of a single expression whether it is understood.
    """
    text = clean(reference)
    if not text:
        return False
    if choice(text) is not None or as_words(text) is not None:
        return True
    values = [split_unit(_sides(item)[1])[0] for item in shape(_without_membership(text))[1]]
    return all(as_number(value) is not None or parse(value) for value in values)


def shape(text: str) -> tuple[str, list[str]]:
    r"""How several values are put together, and those values.

    ``one`` value; ``list`` without brackets, by commas, "and", "or" or ±; ``set`` in \{\}; else the brackets
    themselves, such as ``()`` for tuples and open intervals or ``[)``.
    """
    inner = re.fullmatch(r"\\(?:\{|lbrace)(.*)\\(?:\}|rbrace)", text, re.DOTALL)
    if inner and _balanced(inner[1]):
        return "set", list(dict.fromkeys(_split(inner[1])))
    angled = re.fullmatch(r"\\langle(.*)\\rangle", text, re.DOTALL)
    if angled:
        return "()", _split(angled[1])
    if text[0] in "([]" and text[-1] in ")][" and _balanced(text[1:-1]):
        items = _split(text[1:-1])
        if len(items) > 1:
            return OPEN.get(text[0], text[0]) + OPEN.get(text[-1] + " ", text[-1]), items
    items = _split(re.sub(rf"\s*,?\s*(?:{TEXT}\{{\s*,?\s*(?:and|or)\s*\}}|\b(?:and|or)\b|;)\s*", ",", text))
    if len(items) == 1 and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", text):
        return "one", items
    if len(items) == 1 and len(PLUS_MINUS.findall(text)) == 1:
        return "list", [PLUS_MINUS.sub("+", text), PLUS_MINUS.sub("-", text)]
    return ("list" if len(items) > 1 else "one"), items


def _split(text: str) -> list[str]:
    """At commas that stand in no bracket; but 1,000 is one number."""
    if re.fullmatch(r"\s*(?:\\?\$\s*)?-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?\D*", text):
        return [text.strip()]
    parts, depth, start = list[str](), 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _same_members(mine: Sequence[str], theirs: Sequence[str], equal: Equal) -> bool:
    """The same members in whatever order."""
    if len(mine) != len(theirs):
        return False
    left = list(theirs)
    for item in mine:
        match = next((other for other in left if compare(item, other, equal)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _compare_equations(answer: str, reference: str, equal: Equal) -> bool | None:
    """Where "=" is: of x = 5 only the 5 counts unless both name something; None where that does not settle it."""
    if RELATION.search(answer + reference) or shape(answer)[0] not in ("one", "list"):
        return None
    mine, theirs = _sides(answer), _sides(reference)
    if mine[0] and theirs[0]:
        if _squeezed(mine[0]) == _squeezed(theirs[0]):
            return compare(mine[1], theirs[1], equal)
        return _asked(answer, reference, equal) if shape(answer)[0] == shape(reference)[0] == "one" else None
    name, value, other = (mine[0], mine[1], reference) if mine[0] else (theirs[0], theirs[1], answer)
    if name and (NAME.match(name) or (mine[0] and not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", name)))):
        if not NAME.match(name) and not equal(name, value):
            return False
        return compare(value, other, equal) if mine[0] else compare(other, value, equal)
    return None if not name else False


def _sides(text: str) -> tuple[str, str]:
    """What comes before the first "=" and after the last; of x = 1, x = 2 the name and both values."""
    items = [re.split(r"(?<![<>!\\])=", item) for item in shape(text)[1]] if shape(text)[0] == "list" else []
    if items and not PLUS_MINUS.search(text) and all(len(item) == 2 for item in items):
        names = {_squeezed(item[0]) for item in items}
        return (items[0][0].strip(), ",".join(item[1] for item in items)) if len(names) == 1 else ("", text)
    first, *more = re.split(r"(?<![<>!\\])=", text)
    if len(more) == 1 and NAME.match(more[0]) and not NAME.match(first):  # 5 = x
        return more[0].strip(), first.strip()
    return (first.strip(), more[-1].strip()) if more else ("", text)


def _compare_single(answer: str, reference: str, equal: Equal) -> bool:
    (mine, unit), (theirs, wanted) = split_unit(answer), split_unit(reference)
    if unit and wanted and unit != wanted:
        return False
    if unit == "°" and r"\pi" in theirs:
        mine = rf"\frac{{{mine}\pi}}{{180}}"
    if wanted == "°" and r"\pi" in mine:
        theirs = rf"\frac{{{theirs}\pi}}{{180}}"
    number, target = as_number(mine), as_number(theirs)
    if number is not None and target is not None:
        # 50 % is 50 where percentages were asked for, and it is 0.5.
        mine_is_share, target_is_share = unit == "%" != wanted, wanted == "%" != unit
        return (
            number == target
            or (mine_is_share and number / 100 == target)
            or (target_is_share and number == target / 100)
        )
    if unit == "%" and wanted is None:
        return _asked(mine, theirs, equal) or _asked(rf"\frac{{{mine}}}{{100}}", theirs, equal)
    return _asked(mine, theirs, equal)


def as_number(text: str) -> Fraction | None:
    """The exact value of a number written as digits, decimals, a fraction, a mixed number or times a power of ten."""
    if len(text) > 100:
        return None
    if match := SCALAR.match(text):
        power = int(match[3] or match[4] or match[5] or 0)
        if abs(power) > LARGEST:
            return None
        return _sign(match[1]) * Fraction(_digits(match[2])) * Fraction(10) ** power
    if match := POWER.match(text):
        power = int(match[2] or match[3])
        return None if abs(power) > LARGEST else _sign(match[1]) * Fraction(10) ** power
    if match := REPEATING.match(text):
        sign, whole, fixed, repeated = match.groups()
        tail = Fraction(int(repeated), 10 ** len(repeated) - 1)
        return _sign(sign) * (int(whole or 0) + (int(fixed or 0) + tail) / 10 ** len(fixed))
    if match := RATIO.match(text) or SLASHED.match(text):
        sign, whole, *rest = match.groups()
        above, below = (Fraction(_digits(part)) for part in rest if part is not None)
        return None if below == 0 else _sign(sign) * (Fraction(whole or 0) + above / below)
    return None


def _digits(text: str) -> str:
    return text.replace(",", "")


def _sign(signs: str) -> int:
    return -1 if signs.count("-") % 2 else 1


def _asked(answer: str, reference: str, equal: Equal) -> bool:
    if max(len(answer), len(reference)) > LONGEST or max(map(_depth, (answer, reference))) > DEEPEST:
        return False
    return equal(answer, reference)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _without_membership(text: str) -> str:
    return re.sub(r"^\s*[A-Za-z]\s*\\in(?![a-z])\s*", "", text).strip() or text


def _squeezed(text: str) -> str:
    """Without spaces, but for those between digits: 3 00 is not 300."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
