"""The statistics of a verdict: a paired test that is exact, an interval of the mean, and a correction for many tests.

A pair is one cell of one arm beside the cell of another arm with the same style, reference and seed. What is tested is
the mean of the differences d_i over the pairs.
"""

from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
EXACT = 40  # pairs up to which every sign is counted
DRAWS = 200_000


def sign_flip(differences: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p of "the mean difference is above `threshold`", by flipping signs (Fisher's randomisation test).

    p = share of the 2^n sign vectors s with sum s_i e_i >= sum e_i, where e_i = d_i - threshold. Exact for up to 40
    pairs: the sums of both halves are sorted and counted against each other. Above that 200,000 random sign vectors
    with a fixed seed, (hits + 1) / (draws + 1). No differences: 1.
    """
    e = np.asarray(differences, dtype=np.float64) - threshold
    if len(e) == 0:
        return 1.0
    bound = e.sum() - 1e-9 * max(1.0, float(np.abs(e).sum()))  # equal sums are equal, whatever the order of adding
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
