"""95 % intervals of means: Wilson intervals for shares, bootstrap intervals for other means.

Over images: they cover other prompts and seeds of the same run, not another reference or training run.
"""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # the normal quantile of a two-sided 95 % interval


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % interval in [0, 1] of a share of `hits` among `n` > 0 trials (Wilson 1927), not degenerate at 0 and 1.

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).
    """
    share, scale = hits / n, 1 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / scale
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (non-empty), from `draws` resamples with a fixed seed."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(array), size=(draws, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def summarise(values: Sequence[float | bool | None]) -> tuple[float | None, list[float] | None, int]:
    """(mean, [low, high], count) over the values that are not None; (None, None, 0) if all are None.

    Wilson's interval if all values are `bool`, otherwise bootstrap.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None, None, 0
    share = all(isinstance(value, bool) for value in known)
    low, high = wilson(sum(map(bool, known)), len(known)) if share else bootstrap([float(v) for v in known])
    return float(np.mean(known)), [low, high], len(known)
