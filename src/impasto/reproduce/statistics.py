"""Statistics of verdicts: an exact paired test, an interval of the mean, and a correction for multiple tests.

A pair are the cells of two arms with the same style, reference and seed; the mean of the differences d_i is tested.
"""

import math
from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
EXACT = 40  # largest number of pairs for the exact count
DRAWS = 200_000
FEWEST = 6  # smallest number of effects with an interval


def sign_flip(differences: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p of "the mean difference is above `threshold`", by flipping signs (Fisher's randomisation test).

    p = share of the 2^n sign vectors s with sum s_i e_i >= sum e_i, where e_i = d_i - threshold. Exact for up to 40
    pairs: the sums of both halves are sorted and counted against each other. Above that 200,000 random sign vectors
    with a fixed seed, (hits + 1) / (draws + 1). No differences: 1.
    """
    e = np.asarray(differences, dtype=np.float64) - threshold
    if len(e) == 0:
        return 1.0
    bound = e.sum() - 1e-9 * max(1.0, float(np.abs(e).sum()))  # tolerance for the order of summation
    if len(e) <= EXACT:
        left, right = signed_sums(e[: len(e) // 2]), np.sort(signed_sums(e[len(e) // 2 :]))
        hits = (len(right) - np.searchsorted(right, bound - left, side="left")).sum()
        return float(hits) / 2.0 ** len(e)
    signs = np.random.default_rng(0)
    hits = sum(int((signs.choice((-1.0, 1.0), (2000, len(e))) @ e >= bound).sum()) for _ in range(DRAWS // 2000))
    return (hits + 1) / (DRAWS + 1)


def signed_sums(e: np.ndarray) -> np.ndarray:
    """The sums of `e` (n,) under all 2^n choices of signs."""
    sums = np.zeros(1)
    for value in e:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def student(effects: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean, mean -+ t s / sqrt(n), s the standard deviation with n - 1; None below 6 effects.

    A percentile bootstrap would be too narrow: it covers the mean in 76 % of cases at n = 3, in 89 % at n = 9.
    """
    n = len(effects)
    if n < FEWEST:
        return None
    mean, half = float(np.mean(effects)), t_quantile(n - 1) * float(np.std(effects, ddof=1)) / math.sqrt(n)
    return [mean - half, mean + half]


def t_quantile(df: int, share: float = 0.95) -> float:
    """The t > 0 with P(-t < T < t) = `share`, T of Student's law with `df` >= 1 degrees of freedom.

    With angle = atan(t / sqrt(df)) that probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4),
    increasing with the angle, which is found by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, df) < share else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _t_inside(angle: float, df: int) -> float:
    """P(|T| < sqrt(df) tan(angle))."""
    odd, cos = df % 2, math.cos(angle)
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= k / (k + 1) * cos * cos
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the p of each test, corrected for the number of tests, in the order given.

    The i-th smallest of m becomes the largest of (m - j) p_(j), j <= i, from j = 0, at most 1 (Holm 1979).
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected
