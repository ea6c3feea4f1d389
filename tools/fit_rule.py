"""The rule from a base's curve to its law (noise/emergence.py, `Rule`), fitted to finished sweeps (C1) of bases.

    mean = 50 % point + offset, std = one number for all (scale 0: a few bases of like widths cannot tell a scale)

    python tools/fit_rule.py docs/results/calibration docs/results/calibration-mini-sd15

Each folder holds cells and the base's calibration.json. With x = the law's mean - the curve's 50 % point and s = its
standard deviation, style accuracy and concept top-5 of every cell are fitted by least squares, one level for each pair
of style and reference and one shape for all bases,

    score = level[base, pair] + a x + b x^2 + c x^3 + d (s - 2) + e (s - 2) x + f (s - 2)^2.

Two forms are fitted. "As drawn": mean and s are those of the law itself. "As counted": those of the law as it counts on
a rectified flow's loss, `p(lam) sigmoid(lam/2)^2` over the levels that the base has, where the base predicts the noise
(noise/counting.py). The form with the smaller residual is taken.

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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rank_laws import sweep

from impasto.bases import loader
from impasto.calibration.emergence import Rule
from impasto.noise.equivalence import equivalent_flow_law
from impasto.noise.laws import StyleFriendly
from impasto.objectives.weighting import predicts_noise
from impasto.reproduce.calibration import SWEEP

DRAWS = 500
OFFSETS = np.arange(-4, 4.01, 0.25)
STDS = np.arange(1, 3.01, 0.25)
AS_DRAWN, AS_COUNTED = "as drawn", "as counted"
Array = np.ndarray


@dataclass(frozen=True)
class Base:
    """points: {share: log-SNR} of the curve; scores [law, pair, (style accuracy, concept top-5)], laws as in SWEEP.
    levels: the lowest and the highest log-SNR of a base that predicts the noise, None for any other."""

    name: str
    points: dict[float, float]
    scores: Array
    levels: tuple[float, float] | None = None

    def place(self, mean: float, std: float, form: str) -> tuple[float, float]:
        """(x, s) of a law."""
        if form == AS_COUNTED and self.levels:
            mean, std = equivalent_flow_law(StyleFriendly(mean, std), *self.levels)
        return mean - self.points[0.5], std

    def law(self, rule: Rule, form: str) -> tuple[float, float]:
        """What a rule proposes here."""
        return rule(self.points, self.levels[0] if form == AS_COUNTED and self.levels else None)


def read(folder: Path) -> Base:
    """A campaign's folder: its cells and its calibration."""
    told = json.loads((folder / "calibration.json").read_text())
    points = {int(share.rstrip("%")) / 100: point["log_snr"] for share, point in told["points"].items()}
    family = loader.load(told["base"], device="cpu", precision="fp32")
    return Base(told["base"], points, sweep(folder)[1], family.schedule.range if predicts_noise(family) else None)


def shape(x: Array, std: Array) -> Array:
    """The terms that all bases share, [..., 6]."""
    wide = std - 2
    return np.stack([x, x**2, x**3, wide, wide * x, wide**2], -1)


@dataclass(frozen=True)
class Surface:
    """A fit of a form: coefficients [6, 2] of `shape`, per base the mean level [2] of its pairs, and the residual sum
    of squares of each score [2]."""

    form: str
    coefficients: Array
    levels: list[Array]
    residual: Array

    def worth(self, base: int, x: Array, std: Array) -> Array:
        """Harmonic mean of the fitted style accuracy and concept top-5 of laws on a base; 0 where one is below 0."""
        style, text = np.moveaxis((self.levels[base] + shape(x, std) @ self.coefficients).clip(0, 1), -1, 0)
        return 2 * style * text / np.maximum(style + text, 1e-9)

    def of(self, rules: Sequence[Rule], i: int, base: Base) -> Array:
        """The worth of rules on base i."""
        places = [base.place(*base.law(rule, self.form), self.form) for rule in rules]
        return self.worth(i, *np.array(places).T)


def fit(bases: Sequence[Base], form: str) -> Surface:
    """Least squares over all cells: terms and scores are taken as differences from their pair's mean over the laws."""
    terms, scores = [], []
    own = [shape(*np.array([base.place(*law, form) for law in SWEEP.values()]).T) for base in bases]
    for base, law in zip(bases, own, strict=True):
        pairs = base.scores.shape[1]
        terms.append(np.repeat((law - law.mean(0))[:, None], pairs, 1).reshape(-1, law.shape[1]))
        scores.append((base.scores - base.scores.mean(0)).reshape(-1, 2))
    x, y = np.concatenate(terms), np.concatenate(scores)
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    levels = [b.scores.mean((0, 1)) - law.mean(0) @ coefficients for b, law in zip(bases, own, strict=True)]
    return Surface(form, coefficients, levels, ((y - x @ coefficients) ** 2).sum(0))


def better(bases: Sequence[Base]) -> Surface:
    """The form with the smaller residual, the two scores' together."""
    return min((fit(bases, form) for form in (AS_DRAWN, AS_COUNTED)), key=lambda fitted: fitted.residual.sum())


def rules() -> list[Rule]:
    """All that are tried, those nearest to an offset of 0 and a standard deviation of 2 first."""
    tried = itertools.product(OFFSETS.tolist(), STDS.tolist())
    return [Rule(*each) for each in sorted(((o, 0.0, s) for o, s in tried), key=lambda r: abs(r[0]) + abs(r[2] - 2))]


def best(surface: Surface, bases: Sequence[Base]) -> tuple[Rule, float]:
    """(the rule of the largest mean worth over the bases, that worth)."""
    tried = rules()
    mean = np.round(np.mean([surface.of(tried, i, base) for i, base in enumerate(bases)], 0), 9)
    return tried[int(mean.argmax())], float(mean.max())


def drawn(bases: Sequence[Base], rng: np.random.Generator) -> list[Base]:
    """The same with each base's pairs drawn with replacement."""
    picks = [rng.integers(0, b.scores.shape[1], b.scores.shape[1]) for b in bases]
    return [replace(b, scores=b.scores[:, pick]) for b, pick in zip(bases, picks, strict=True)]


def told(rule: Rule) -> str:
    return f"offset {rule.offset:+.2f}, standard deviation {rule.floor:g}"


def law_of(rule: Rule, base: Base, form: str) -> str:
    mean, std = base.law(rule, form)
    return f"N({mean:.2f}, {std:.2f}²)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    bases = [read(folder) for folder in parser.parse_args().folders]
    for form in (AS_DRAWN, AS_COUNTED):
        fitted = fit(bases, form)
        rule, worth = best(fitted, bases)
        style, text = fitted.residual
        print(f"laws {form}: residual {style:.4f} + {text:.4f}; {told(rule)}; worth {worth:.3f}")
    surface = better(bases)
    form = surface.form
    rule, worth = best(surface, bases)
    print(f"the rule, of laws {form}: {told(rule)}")
    for i, base in enumerate(bases):
        for name, each in (("the rule", rule), ("today's", Rule())):
            value = float(surface.of([each], i, base)[0])
            print(f"  {base.name}: {name} {law_of(each, base, form)}, worth {value:.3f}")
    if len(bases) > 1:
        for base in bases:
            others = [b for b in bases if b is not base]
            other, _ = best(fit(others, form), others)
            print(f"  {base.name}: the rule of the others ({told(other)}) gives {law_of(other, base, form)}")
    rng = np.random.default_rng(0)
    found, forms = [], []
    for _ in range(DRAWS):
        draw = drawn(bases, rng)
        forms.append(better(draw).form)
        found.append(best(fit(draw, form), draw)[0])
    low, middle, high = np.quantile([each.offset for each in found], (0.05, 0.5, 0.95))
    print(f"drawn anew {DRAWS} times: offset {middle:+.2f} ({low:+.2f} to {high:+.2f}, 90 %)")
    low, middle, high = np.quantile([each.floor for each in found], (0.05, 0.5, 0.95))
    print(
        f"  standard deviation {middle:.2f} ({low:.2f} to {high:.2f}); laws {form} in {forms.count(form) / DRAWS:.0%}"
    )


if __name__ == "__main__":
    main()
