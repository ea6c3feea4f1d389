"""Where along the noise levels a style is decided: from the scores of prompt-switched pictures to a proposed law.

Scores of the same prompts and seeds: `everywhere` and `nowhere` with and without the style's words; `until[k]` with
them in the steps noisier than level k only, `since[k]` with them from level k on only. Over the means of the prompts,

    kept_until = (until - nowhere) / (everywhere - nowhere), rising from 0 to 1 with the level,
    kept_since = (since - nowhere) / (everywhere - nowhere), falling from 1 to 0,
    decided    = (kept_until + 1 - kept_since) / 2, made monotone (isotonic regression).

`decided` is what the words settle up to a level, as seen from both sides: what they do alone up to it, and what can no
longer be made up for after it.
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
WIDTH = 2.5631  # between the 10 % and the 90 % point of a normal law of standard deviation 1
DRAWS = 1000
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
        """Only these prompts, a prompt as often as it is named."""
        return Scores(self.log_snr, self.everywhere[rows], self.nowhere[rows], self.until[rows], self.since[rows])

    @property
    def gap(self) -> float:
        """What the style's words are worth: mean score everywhere minus nowhere."""
        return float(self.everywhere.mean() - self.nowhere.mean())


def kept(scores: Scores) -> tuple[Array, Array]:
    """(kept_until, kept_since) [levels]."""
    base = scores.nowhere.mean()
    return (scores.until.mean(0) - base) / scores.gap, (scores.since.mean(0) - base) / scores.gap


def decided(scores: Scores) -> Array:
    """[levels], in [0, 1], never falling."""
    until, since = kept(scores)
    return isotonic((until + 1 - since) / 2).clip(0, 1)


def isotonic(values: Sequence[float] | Array) -> Array:
    """The nearest never-falling sequence (least squares), by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            other, n = blocks.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        blocks.append((mean, count))
    return np.concatenate([np.full(n, mean) for mean, n in blocks])


def crossing(log_snr: Array, curve: Array, share: float) -> tuple[float, str]:
    """(the log-SNR at which a never-falling curve reaches `share`, ""); linear between levels. Where it does so
    outside of the levels, the end and "below" or "above": no more than that is known."""
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
    """From the curve to a law `log-SNR ~ N(mean, std^2)`: mean = the 50 % point + offset, std = scale times that of the
    normal law with the curve's 10-90 width, but no less than floor.

    The defaults are fitted to sweeps of 13 laws on each of the two embedded bases (tools/fit_rule.py,
    docs/noise-calibration.md): train around where style is decided, a little to the side of the picture, and wide. Two
    bases of like curves cannot tell what the curve's width says, so scale is 0.
    """

    offset: float = 1.0
    scale: float = 0.0
    floor: float = 2.25

    def __post_init__(self) -> None:
        """Raises UserError where a law could come out without a mean, or without a standard deviation above 0."""
        if not (math.isfinite(self.offset) and 0 <= self.scale < math.inf and 0 < self.floor < math.inf):
            raise UserError(
                "offset must be a finite number, scale one from 0 on and floor one above 0, "
                f"not {self.offset:g}, {self.scale:g} and {self.floor:g}"
            )

    def __call__(self, points: Mapping[float, float], lowest: float | None = None) -> tuple[float, float]:
        """(mean, std) from {share: log-SNR} at .1, .5 and .9. lowest: the lowest log-SNR of a base that predicts the
        noise (see `for_noise_prediction`), None for one that predicts a velocity."""
        law = points[0.5] + self.offset, max(self.floor, self.scale * (points[0.9] - points[0.1]) / WIDTH)
        return law if lowest is None else for_noise_prediction(*law, lowest)


@dataclass(frozen=True)
class Emergence:
    """What the scores say. points: {share: (log-SNR, where)}. intervals: 95 %, over prompts drawn with replacement."""

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


def emergence(scores: Scores, rule: Rule | None = None, lowest: float | None = None) -> Emergence:
    """Curve, points and law with their spread. lowest: as a rule is called with.

    Raises UserError where the style's words make no sure difference: where the 95 % interval of `gap` over the prompts
    reaches 0.
    """
    rule = rule or Rule()
    n = len(scores.everywhere)
    picks = np.random.default_rng(0).integers(0, n, size=(DRAWS, n))
    gaps = (scores.everywhere - scores.nowhere)[picks].mean(1)
    if np.quantile(gaps, 0.025) <= 0:
        raise UserError(
            f"with the style's words the score is {scores.everywhere.mean():.3f}, without {scores.nowhere.mean():.3f} "
            f"over {n} prompts: no sure difference, so there is nothing to calibrate by; "
            "this base does not draw these styles, or it takes more prompts (--prompts)"
        )
    curve = decided(scores)
    points = {share: crossing(scores.log_snr, curve, share) for share in POINTS}
    usable = [scores.of(rows) for rows, gap in zip(picks, gaps, strict=True) if gap > 0]
    curves = np.stack([decided(draw) for draw in usable])
    places = {share: [crossing(scores.log_snr, row, share)[0] for row in curves] for share in POINTS}
    laws = [rule({share: places[share][i] for share in POINTS}, lowest)[0] for i in range(len(usable))]
    until, since = kept(scores)
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


def matched(mean: float, positions: int) -> float:
    """A mean log-SNR found at 128 x 128 latents, moved to a picture of `positions` latents by the log of the ratio of
    positions: +4.16 at 16 x 16. Esser et al. 2024 (SD3), section 5.3.2: the same noise hides less of a larger one."""
    return mean + math.log(PUBLISHED_POSITIONS / positions)


def published(positions: int) -> dict[str, dict[str, float]]:
    """The published laws, as they are and matched to `positions` latents."""
    return {
        name: {"noise_mean": round(mean, 2), "noise_std": std, "matched_mean": round(matched(mean, positions), 2)}
        for name, (mean, std) in PUBLISHED.items()
    }
