"""The rule from a base's curve to its law (noise/emergence.py, `Rule`), fitted to finished sweeps (C1) of bases.

    mean = 50 % point + offset, std = one number for all (scale 0: a few bases of like widths cannot tell a scale)

    python scripts/fit_rule.py docs/results/calibration docs/results/calibration-mini-sd15

Each folder holds cells and the base's calibration.json. With x = the law's mean - the curve's 50 % point and s = its
standard deviation, style accuracy and concept top-5 of every cell are fitted by least squares, one level for each pair
of style and reference and one shape for all bases,

    score = level[base, pair] + a x + b x^2 + c x^3 + d (s - 2) + e (s - 2) x + f (s - 2)^2.

A rule's worth on a base is the harmonic mean of the two fitted scores of the law that it gives there, averaged over the
pairs, as in C1 (a surface: the order of 13 laws by 8 cells each is not sure, rank_laws.py). The rule is that with
the largest worth, averaged over the bases. Only laws within the sweep's own range are tried: offsets from -4 to 4,
standard deviations from 1 to 3. How sure it is: the pairs of each base drawn with replacement, DRAWS times; and, with
several bases, the rule of all others on each base.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rank_laws import sweep

from impasto.noise.emergence import Rule
from impasto.reproduce.calibration import SWEEP

DRAWS = 500
OFFSETS = np.arange(-4, 4.01, 0.25)
STDS = np.arange(1, 3.01, 0.25)


@dataclass(frozen=True)
class Base:
    """points: {share: log-SNR} of the curve; scores [law, pair, (style accuracy, concept top-5)], laws as in SWEEP."""

    name: str
    points: dict[float, float]
    scores: np.ndarray


def read(folder: Path) -> Base:
    """A campaign's folder: its cells and its calibration."""
    told = json.loads((folder / "calibration.json").read_text())
    points = {int(share.rstrip("%")) / 100: point["log_snr"] for share, point in told["points"].items()}
    return Base(told["base"], points, sweep(folder)[1])


def shape(x: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The terms that all bases share, [..., 6]."""
    wide = std - 2
    return np.stack([x, x**2, x**3, wide, wide * x, wide**2], -1)


@dataclass(frozen=True)
class Surface:
    """A fit: coefficients [6, 2] of `shape`, and per base the mean level [2] of its pairs."""

    coefficients: np.ndarray
    levels: list[np.ndarray]

    def worth(self, base: int, x: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Harmonic mean of the fitted style accuracy and concept top-5 of laws on a base; 0 where one is below 0."""
        style, text = np.moveaxis((self.levels[base] + shape(x, std) @ self.coefficients).clip(0, 1), -1, 0)
        return 2 * style * text / np.maximum(style + text, 1e-9)


def fit(bases: Sequence[Base]) -> Surface:
    """Least squares over all cells: terms and scores are taken as differences from their pair's mean over the laws."""
    terms, scores = [], []
    laws = np.array(list(SWEEP.values()))
    own = [shape(laws[:, 0] - base.points[0.5], laws[:, 1]) for base in bases]
    for base, law in zip(bases, own, strict=True):
        pairs = base.scores.shape[1]
        terms.append(np.repeat((law - law.mean(0))[:, None], pairs, 1).reshape(-1, law.shape[1]))
        scores.append((base.scores - base.scores.mean(0)).reshape(-1, 2))
    coefficients = np.linalg.lstsq(np.concatenate(terms), np.concatenate(scores), rcond=None)[0]
    levels = [b.scores.mean((0, 1)) - law.mean(0) @ coefficients for b, law in zip(bases, own, strict=True)]
    return Surface(coefficients, levels)


def rules() -> list[Rule]:
    """All that are tried, those nearest to an offset of 0 and a standard deviation of 2 first."""
    tried = itertools.product(OFFSETS.tolist(), STDS.tolist())
    return [Rule(*each) for each in sorted(((o, 0.0, s) for o, s in tried), key=lambda r: abs(r[0]) + abs(r[2] - 2))]


def best(surface: Surface, bases: Sequence[Base]) -> tuple[Rule, float]:
    """(the rule of the largest mean worth over the bases, that worth)."""
    tried = rules()
    x, std = np.array([(rule.offset, rule.floor) for rule in tried]).T
    mean = np.round(np.mean([surface.worth(i, x, std) for i in range(len(bases))], 0), 9)
    return tried[int(mean.argmax())], float(mean.max())


def drawn(bases: Sequence[Base], rng: np.random.Generator) -> list[Base]:
    """The same with each base's pairs drawn with replacement."""
    picks = [rng.integers(0, b.scores.shape[1], b.scores.shape[1]) for b in bases]
    return [Base(b.name, b.points, b.scores[:, pick]) for b, pick in zip(bases, picks, strict=True)]


def told(rule: Rule) -> str:
    return f"offset {rule.offset:+.2f}, standard deviation {rule.floor:g}"


def law_of(rule: Rule, base: Base) -> str:
    mean, std = rule(base.points)
    return f"N({mean:.2f}, {std:.2f}²)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    bases = [read(folder) for folder in parser.parse_args().folders]
    surface = fit(bases)
    rule, worth = best(surface, bases)
    print(f"the rule: {told(rule)}; worth {worth:.3f}")
    for i, base in enumerate(bases):
        for name, each in (("the rule", rule), ("today's", Rule())):
            mean, std = each(base.points)
            value = float(surface.worth(i, np.array(mean - base.points[0.5]), np.array(std)))
            print(f"  {base.name}: {name} {law_of(each, base)}, worth {value:.3f}")
    if len(bases) > 1:
        for base in bases:
            others = [b for b in bases if b is not base]
            other, _ = best(fit(others), others)
            print(f"  {base.name}: the rule of the others ({told(other)}) gives {law_of(other, base)}")
    rng = np.random.default_rng(0)
    found = [best(fit(again), again)[0] for again in (drawn(bases, rng) for _ in range(DRAWS))]
    low, middle, high = np.quantile([each.offset for each in found], (0.05, 0.5, 0.95))
    print(f"drawn anew {DRAWS} times: offset {middle:+.2f} ({low:+.2f} to {high:+.2f}, 90 %)")
    low, middle, high = np.quantile([each.floor for each in found], (0.05, 0.5, 0.95))
    print(f"  standard deviation {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
