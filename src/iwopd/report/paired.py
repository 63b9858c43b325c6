"""Paired comparisons: is the mean of a few differences larger than their noise? Exact where that can be."""

# torch's own annotations are partial, and scipy has none.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeStubs=false

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import torch
from scipy.special import stdtrit
from torch import Tensor

EXACT_LIMIT = 16  # differences whose sign patterns are all enumerated
DRAWS = 20_000  # random ones of more: at p = 0.05 a standard error of 0.0015
CHUNK = 2**14  # sign patterns at one time
LEVEL = 0.05  # how often chance alone may give something that is called larger than the noise


def sign_flip_pvalue(differences: Sequence[float], draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of paired differences [n] under "the sign of each is chance" (Fisher's randomisation test).

    The share of all 2^n ways to choose the signs whose mean is at least as far from 0 as the one observed. Exact up to
    16 differences, so with n of them it is never below 2/2^n; beyond, (hits + 1) / (draws + 1) of random signs
    (Phipson & Smyth 2010).

    Raises:
        ValueError: no differences.
    """
    return adjusted_pvalues([differences], draws, seed)[0]


def adjusted_pvalues(looks: Sequence[Sequence[float | None]], draws: int = DRAWS, seed: int = 0) -> list[float]:
    """p-values of several sets of paired differences, corrected for looking at all of them: step-down max-T
    (Westfall & Young 1993) over sign flips.

    The signs of one unit (a seed, a prompt) are flipped in all looks together, so what looks have in common is kept,
    and the largest statistic of all looks under each pattern is what a look has to beat. Calling looks with p ≤ 0.05
    different is wrong about any of them in at most 5 % of studies (family-wise), whatever the true differences of the
    others. The statistic is |Σd| / √Σd², which grows with Student's t, and which sign flips keep in scale.

    Why this and not Holm's correction: of n differences, no p-value of a sign-flip test is below 2/2^n, which Holm
    multiplies by the number of looks, so that 12 looks need 9 units, and these 6. Why not a t-test with Holm's
    correction: the units' noise need not be normal, with small benchmarks it is not. Simulated (5 % wanted; 3 arms
    × 4 figures, correlated): family-wise errors of 3.5 to 5.5 % with 6 to 8 units and normal noise; a difference of
    twice its standard deviation is found by max-T / Holm over signs / Holm over t in 61 / 0 / 79 % of studies with 6
    units, 95 / 0 / 96 % with 8, 99 / 99 / 99 % with 10.

    Args:
        looks: differences [looks][n] over the same n units; None where a look lacks a unit.

    Raises:
        ValueError: no looks, or one without differences.
    """
    filled = _matrix(looks)
    scale = filled.square().sum(0).sqrt().clamp(min=1e-300)
    observed = filled.sum(0).abs() / scale
    order = observed.argsort(descending=True)
    bound = observed[order] - 1e-9  # sums in another order may round down
    hits, count = torch.zeros(len(order)), 0
    for signs in _sign_patterns(len(filled), draws, seed):
        found = ((signs @ filled).abs() / scale)[:, order]
        rest = found.flip(1).cummax(1).values.flip(1)  # of this look and those that come after it
        hits += (rest >= bound).sum(0)
        count += len(signs)
    exact = len(filled) <= EXACT_LIMIT
    shares = hits / count if exact else (hits + 1) / (count + 1)
    adjusted = torch.empty_like(shares)
    adjusted[order] = shares.cummax(0).values
    return adjusted.tolist()


def _matrix(looks: Sequence[Sequence[float | None]]) -> Tensor:
    """[units, looks] in float64; 0, which no sign changes, for what is missing."""
    for look in looks:
        _checked([value for value in look if value is not None])
    if not looks:
        raise ValueError("a comparison needs at least one look")
    filled = [[0.0 if value is None else value for value in look] for look in looks]
    return torch.tensor(filled, dtype=torch.float64).T


def _sign_patterns(n: int, draws: int, seed: int) -> Iterator[Tensor]:
    """[patterns, n] of ±1, in chunks: all that begin with + where n is small, for the others mirror them; else
    random ones."""
    if n <= EXACT_LIMIT:
        bits = torch.arange(n - 1)
        for start in range(0, 2 ** (n - 1), CHUNK):
            numbers = torch.arange(start, min(start + CHUNK, 2 ** (n - 1)))
            flipped = (numbers[:, None] >> bits) & 1
            yield torch.cat([torch.ones(len(numbers), 1), 1.0 - 2.0 * flipped], dim=1).double()
        return
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, draws, CHUNK):
        drawn = torch.randint(0, 2, (min(CHUNK, draws - start), n), generator=generator)
        yield 2.0 * drawn.double() - 1.0


def smallest_pvalue(n: int) -> float:
    """The smallest p-value that sign flips of n differences can give, corrected or not: all of one sign."""
    return min(1.0, 2.0 / 2.0**n) if n <= EXACT_LIMIT else 1.0 / (DRAWS + 1)


def units_needed(level: float = LEVEL) -> int:
    """The fewest differences whose sign flips can give a p-value of at most `level`, however many looks there are."""
    return next(n for n in range(1, 1000) if smallest_pvalue(n) <= level)


def bootstrap_interval(
    differences: Sequence[float],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    expand: bool = True,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of paired differences [n]: percentiles of the means of seeded resamples.

    With `expand`, the percentiles lie further out, at Φ(∓ √(n/(n−1)) · t_{n−1}), which undoes what plain percentiles
    miss in small samples (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279, §5.3.3):
    on normal data the plain 95 % interval of 5 differences holds the mean in 84 % of cases, the expanded one in 92 %
    (6 to 8: 94 %; 10 and more: 95 %). Neither leaves the range of the differences, so fewer are not enough: 76 % with
    3, one half with 2.

    Raises:
        ValueError: fewer than two differences, which say nothing of the noise, or a level outside (0, 1).
    """
    values = _checked(differences)
    n = len(values)
    if n < 2 or not 0 < level < 1:
        raise ValueError(f"an interval needs two differences and a level between 0 and 1; got {n} and {level}")
    tail = (1 - level) / 2
    if expand:
        tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 1 - tail)))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, n, (resamples, n), generator=generator)
    means = values[drawn].mean(1)
    return float(torch.quantile(means, tail)), float(torch.quantile(means, 1 - tail))


def _checked(differences: Sequence[float]) -> Tensor:
    values = torch.tensor(list(differences), dtype=torch.float64)
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError(f"a comparison needs finite differences; got {list(differences)}")
    return values
