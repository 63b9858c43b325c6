"""Statistics of an evaluation: over problems, with k samples each."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is right, unbiased from n ≥ k samples (arXiv 2107.03374).

    1 − C(n − c, k) / C(n, k).

    Raises:
        ValueError: unless 0 ≤ correct ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs 1 ≤ k ≤ n and 0 ≤ correct ≤ n; got n={n}, correct={correct}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of per-problem values in [0, 1] with its 95 % interval: mean ± 1.96 · sd/√n, cut to [0, 1].

    Problems are the unit of sampling (arXiv 2411.00640): the k samples of one problem are averaged before, never
    counted as independent. With one problem, or values all alike, nothing is known about the spread: the interval is
    Wilson's for the mean as a proportion.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one problem")
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values)
    if n > 1 and spread > 0:
        half = Z95 * math.sqrt(spread / (n - 1) / n)
        return mean, max(0.0, mean - half), min(1.0, mean + half)
    centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2))
    return mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))
