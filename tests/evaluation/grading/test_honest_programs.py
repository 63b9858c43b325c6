"""Programs that mean well, in the formats of HumanEval+ and MBPP+: their verdicts are evalplus' own."""

import pytest
from support.attacks import answered
from support.programs import HUB, MBPP

from iwopd.evaluation.grading import CodeGrader

pytestmark = pytest.mark.process


def native(task: str, name: str, inputs: list, solution: str, atol: float = 0) -> dict:
    return {
        "task_id": task,
        "prompt": f"def {name}(*rest):\n",
        "entry_point": name,
        "canonical_solution": solution,
        "base_input": inputs[:1],
        "plus_input": inputs[1:],
        "atol": atol,
    }


HALF = native("HumanEval/904", "half", [[1.0], [2.5], [1e-9]], "    return rest[0] / 3\n")
SAME = native("HumanEval/905", "same", [[[3, 1, 2]], [[1]], [[]]], "    return sorted(rest[0])\n")
BIG = native("HumanEval/906", "big", [[3], [200], [20_000]], "    import math\n    return 10 ** rest[0]\n")
ZERO = native(
    "HumanEval/32", "find_zero", [[[1, 2]], [[-6, 11, -6, 1]]], "    return -0.5 if len(rest[0]) == 2 else 1.0\n", 1e-4
)
SHARED = native(
    "Mbpp/2",
    "similar_elements",
    [[[3, 4, 5], [5, 7, 4]], [[1], [2]]],
    "    return tuple(set(rest[0]) & set(rest[1]))\n",
)
MATCH = native(
    "Mbpp/300", "check_str", [["annie"], ["xyz"]], "    import re\n    return re.search('^[aeiou]', rest[0])\n"
)
EQUIVALENT = native("Mbpp/164", "are_equivalent", [[36, 57], [2, 4]], "    return False\n")
DIVISORS = native(
    "Mbpp/295", "sum_div", [[8], [12]], "    return sum(i for i in range(1, rest[0]) if rest[0] % i == 0)\n"
)
PYRAMID = native("Mbpp/581", "surface_Area", [[3, 4], [4, 5]], "    return 33 if rest[0] == 3 else 56\n")
DIGITS = native(
    "Mbpp/558", "digit_distance_nums", [[1, 2], [23, 56]], "    return sum(map(int, str(abs(rest[0] - rest[1]))))\n"
)
ANGLE = native(
    "Mbpp/124",
    "angle_complex",
    [["0.0", "1j"], ["2.0", "1j"]],
    "    import cmath\n    return cmath.phase(rest[0] + rest[1])\n",
)
EMPTY = native("Mbpp/115", "empty_dit", [[[{}, {}]], [[[1], []]]], "    return not any(rest[0])\n")
COUNTS = native("HumanEval/907", "count", [["abca"], [""]], "    return {c: rest[0].count(c) for c in rest[0]}\n")
DEFAULTS = """
from collections import defaultdict
def count(text):
    found = defaultdict(int)
    for each in text:
        found[each] += 1
    return found
"""
# What evalplus 0.3.1 itself says of each when it runs the program in its own process.
HONEST: list[tuple[dict, str, bool]] = [
    (HALF, "def half(x):\n    return x / 3", True),
    (HALF, "def half(x):\n    return x * 0.3333333333", True),
    (HALF, "def half(x):\n    return x * 0.3334", False),
    (HALF, "import numpy\ndef half(x):\n    return numpy.float64(x) / 3", True),
    (HALF, "import numpy\ndef half(x):\n    return numpy.float32(x) / 3", True),  # equal, as numpy promotes
    (HALF, "from fractions import Fraction\ndef half(x):\n    return Fraction(x) / 3", False),
    (SAME, "def same(x):\n    x.sort()\n    return x", True),
    (SAME, "def same(x):\n    return tuple(sorted(x))", False),
    (SAME, "def same(x):\n    return (each for each in sorted(x))", False),
    (SAME, "from collections import deque\ndef same(x):\n    return deque(sorted(x))", False),
    (SAME, "class Mine(list):\n    pass\ndef same(x):\n    return Mine(sorted(x))", True),
    (SAME, "def same(x, seen=[]):\n    seen.append(x)\n    return sorted(x) if len(seen) < 3 else None", True),
    (SAME, "def same(x, seen=[]):\n    seen.append(x)\n    return sorted(x) if len(seen) < 2 else None", False),
    (BIG, "def big(n):\n    return 10 ** n", True),
    (BIG, "def big(n):\n    return 10.0 ** n", False),
    (BIG, "def big(n):\n    return 10 if n == 1 else 10 * big(n - 1)", False),
    # evalplus 0.3.1 never counts this one as done, so all fail.
    (ZERO, "def find_zero(xs):\n    return -0.5 if len(xs) == 2 else 3.00000001", False),
    (ZERO, "def find_zero(xs):\n    return -0.4", False),
    (SHARED, "def similar_elements(a, b):\n    return [each for each in a if each in b]", True),
    (SHARED, "def similar_elements(a, b):\n    return (each for each in a if each in b)", True),
    (SHARED, "def similar_elements(a, b):\n    return a", False),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('[aeiou]', text)", True),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('[aeiou]', text) is not None", True),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('z', text)", False),
    (EQUIVALENT, "def are_equivalent(a, b):\n    return True", True),
    (EQUIVALENT, "def are_equivalent(a, b):\n    raise ValueError", False),
    (DIVISORS, "def sum_div(n):\n    return 0", True),
    (DIVISORS, "def sum_div(n):\n    return 1", False),
    (PYRAMID, "def surface_Area(b, h):\n    return round(b * b + 2 * b * ((b / 2) ** 2 + h * h) ** 0.5)", True),
    (PYRAMID, "def surface_Area(b, h):\n    return 1", False),
    (DIGITS, "def digit_distance_nums(a, b):\n    return abs(a % 10 - b % 10) + abs(a // 10 - b // 10)", True),
    (DIGITS, "def digit_distance_nums(a, b):\n    return -1", False),
    (ANGLE, "import cmath\ndef angle_complex(a, b):\n    return cmath.phase(a + b)", True),
    (EMPTY, "def empty_dit(x):\n    return all(not each for each in x)", True),
    (COUNTS, "from collections import Counter\ndef count(text):\n    return Counter(text)", True),
    (
        COUNTS,
        DEFAULTS,
        True,
    ),
    (COUNTS, "def count(text):\n    return list(text)", False),
    (HUB, "import numpy\ndef add(a, b):\n    return numpy.int64(a + b)", True),
    (HUB, "def add(a, b):\n    return float(a + b)", True),
    (MBPP, "def add(a, b):\n    print(a, b)\n    return a + b", True),
    (MBPP, "def other(a):\n    return a\ndef add(a, b):\n    return other(a) + b", True),
]


def test_honest_programs_are_judged_as_evalplus_does() -> None:
    grader = CodeGrader(seconds=6, memory=2**31)
    try:
        found = grader([answered(row, code) for row, code, _ in HONEST])
    finally:
        grader.close()
    wrong = [
        (code, verdict) for (_, code, right), verdict in zip(HONEST, found, strict=True) if verdict.correct is not right
    ]
    assert wrong == []
