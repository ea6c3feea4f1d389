"""Emergence of style along the noise levels: from the scores of prompt-switched images to a proposed noise law.

Scores of the same prompts and seeds: `everywhere` and `nowhere` with and without the style's words; `until[k]` with
them only in the steps noisier than level k, `since[k]` only from level k on. With means over the prompts,

    kept_until = (until - nowhere) / (everywhere - nowhere), rising from 0 to 1 with the level,
    kept_since = (since - nowhere) / (everywhere - nowhere), falling from 1 to 0,
    decided    = (kept_until + 1 - kept_since) / 2, made monotone (isotonic regression).

`decided` is the share of the style that is determined up to a level: the mean of the share reached by the words up to
it and of the share that words after it can no longer add.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from impasto.errors import UserError
from impasto.noise.equivalence import for_noise_prediction
from impasto.noise.laws import PUBLISHED_POSITIONS

PUBLISHED = {"style-friendly": (-6.0, 2.0), "sd3": (-2 * math.log(3), 2.0)}
POINTS = (0.1, 0.5, 0.9)
WIDTH = 2.5631  # 10-90 % width of the standard normal
DRAWS = 1000  # bootstrap resamples
Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """everywhere, nowhere [prompts]; until, since [prompts, levels]; log_snr [levels], rising."""

    log_snr: Array
    everywhere: Array
    nowhere: Array
    until: Array
    since: Array

    def of(self, rows: Array) -> "Scores":
        """The scores of these prompts, with repetitions."""
        return Scores(self.log_snr, self.everywhere[rows], self.nowhere[rows], self.until[rows], self.since[rows])

    @property
    def gap(self) -> float:
        """The effect of the style's words: mean score everywhere minus nowhere."""
        return float(self.everywhere.mean() - self.nowhere.mean())


def style_shares(scores: Scores) -> tuple[Array, Array]:
    """(kept_until, kept_since) [levels]."""
    base = scores.nowhere.mean()
    return (scores.until.mean(0) - base) / scores.gap, (scores.since.mean(0) - base) / scores.gap


def decided_share(scores: Scores) -> Array:
    """decided [levels], in [0, 1], non-decreasing."""
    until, since = style_shares(scores)
    return isotonic((until + 1 - since) / 2).clip(0, 1)


def isotonic(values: Sequence[float] | Array) -> Array:
    """The least-squares non-decreasing fit, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            other, n = blocks.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        blocks.append((mean, count))
    return np.concatenate([np.full(n, mean) for mean, n in blocks])


def crossing(log_snr: Array, curve: Array, share: float) -> tuple[float, str]:
    """(log-SNR at which a non-decreasing curve reaches `share`, linear between levels, ""). When it does so outside the
    levels: (the nearest level, "below" or "above")."""
    if curve[0] >= share:
        return float(log_snr[0]), "" if curve[0] == share else "below"
    if curve[-1] < share:
        return float(log_snr[-1]), "above"
    right = int(np.argmax(curve >= share))
    low, high = curve[right - 1], curve[right]
    at = (share - low) / (high - low)
    return float(log_snr[right - 1] + at * (log_snr[right] - log_snr[right - 1])), ""


@dataclass(frozen=True)
class Rule:
    """From the curve to a law `log-SNR ~ N(mean, std^2)`: mean = 50 % point + offset, std = max(floor, scale times the
    std of the normal law with the curve's 10-90 width).

    The defaults are fitted to sweeps of 13 laws on each of the two embedded bases (tools/fit_rule.py,
    docs/noise-calibration.md): slightly less noise than where style is decided, and wide. scale is 0, since two bases
    with similar curves cannot determine it.
    """

    offset: float = 1.0
    scale: float = 0.0
    floor: float = 2.25

    def __post_init__(self) -> None:
        """Raises UserError unless the resulting law always has a finite mean and a standard deviation above 0."""
        if not (math.isfinite(self.offset) and 0 <= self.scale < math.inf and 0 < self.floor < math.inf):
            raise UserError(
                "offset must be a finite number, scale at least 0 and floor above 0, "
                f"not {self.offset:g}, {self.scale:g} and {self.floor:g}"
            )

    def __call__(self, points: Mapping[float, float], lowest: float | None = None) -> tuple[float, float]:
        """(mean, std) from {share: log-SNR} at .1, .5 and .9. lowest: the lowest log-SNR of a base that predicts the
        noise (see `for_noise_prediction`), None for one that predicts a velocity."""
        law = points[0.5] + self.offset, max(self.floor, self.scale * (points[0.9] - points[0.1]) / WIDTH)
        return law if lowest is None else for_noise_prediction(*law, lowest)


@dataclass(frozen=True)
class Emergence:
    """The curve, its points {share: (log-SNR, where)}, the law, and 95 % bootstrap intervals over the prompts."""

    scores: Scores
    until: Array
    since: Array
    curve: Array
    points: dict[float, tuple[float, str]]
    curve_interval: Array  # [2, levels]
    point_intervals: dict[float, tuple[float, float]]
    law: tuple[float, float]
    mean_interval: tuple[float, float]
    rule: Rule = field(default_factory=Rule)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        levels = zip(self.scores.log_snr, self.until, self.since, self.curve, *self.curve_interval, strict=True)
        keys = ("log_snr", "kept_until", "kept_since", "decided", "low", "high")
        return {
            "levels": [dict(zip(keys, (round(float(x), 4) for x in row), strict=True)) for row in levels],
            "score": {
                "everywhere": round(float(self.scores.everywhere.mean()), 4),
                "nowhere": round(float(self.scores.nowhere.mean()), 4),
            },
            "points": {
                f"{share:.0%}": {"log_snr": round(at, 3), "interval": rounded(self.point_intervals[share])}
                | ({"outside": where} if where else {})
                for share, (at, where) in self.points.items()
            },
            "proposal": {
                "noise": "style-friendly",
                "noise_mean": round(self.law[0], 2),
                "noise_std": round(self.law[1], 2),
                "mean_interval": rounded(self.mean_interval),
                "rule": {"offset": self.rule.offset, "scale": self.rule.scale, "floor": self.rule.floor},
            },
        }


def rounded(interval: Sequence[float]) -> list[float]:
    return [round(float(x), 3) for x in interval]


def measure_emergence(scores: Scores, rule: Rule | None = None, lowest: float | None = None) -> Emergence:
    """Curve, points and law with intervals. lowest: see `Rule.__call__`.

    Raises UserError when the effect of the style's words is not significant: the 95 % interval of `gap` reaches 0.
    """
    rule = rule or Rule()
    n = len(scores.everywhere)
    picks = np.random.default_rng(0).integers(0, n, size=(DRAWS, n))
    gaps = (scores.everywhere - scores.nowhere)[picks].mean(1)
    if np.quantile(gaps, 0.025) <= 0:
        raise UserError(
            f"with the style's words the score is {scores.everywhere.mean():.3f}, without {scores.nowhere.mean():.3f} "
            f"over {n} prompts: no significant difference, so nothing can be calibrated; "
            "this base does not know these styles, or more prompts are needed (--prompts)"
        )
    curve = decided_share(scores)
    points = {share: crossing(scores.log_snr, curve, share) for share in POINTS}
    usable = [scores.of(rows) for rows, gap in zip(picks, gaps, strict=True) if gap > 0]
    curves = np.stack([decided_share(draw) for draw in usable])
    places = {share: [crossing(scores.log_snr, row, share)[0] for row in curves] for share in POINTS}
    laws = [rule({share: places[share][i] for share in POINTS}, lowest)[0] for i in range(len(usable))]
    until, since = style_shares(scores)
    return Emergence(
        scores,
        until,
        since,
        curve,
        points,
        np.quantile(curves, [0.025, 0.975], axis=0),
        {share: interval(places[share]) for share in POINTS},
        rule({share: at for share, (at, _) in points.items()}, lowest),
        interval(laws),
        rule,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def match_resolution(mean: float, positions: int) -> float:
    """A mean log-SNR tuned at 128 x 128 latents, shifted to `positions` latents by the log of the ratio of positions:
    +4.16 at 16 x 16. Esser et al. 2024 (SD3), section 5.3.2: the same noise hides less of a larger image."""
    return mean + math.log(PUBLISHED_POSITIONS / positions)


def published(positions: int) -> dict[str, dict[str, float]]:
    """The published laws, original and matched to `positions` latents."""
    return {
        name: {
            "noise_mean": round(mean, 2),
            "noise_std": std,
            "matched_mean": round(match_resolution(mean, positions), 2),
        }
        for name, (mean, std) in PUBLISHED.items()
    }
