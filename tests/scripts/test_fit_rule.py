"""scripts/fit_rule.py finds the rule that was planted in made-up sweeps."""

import sys
from pathlib import Path

import numpy as np

from impasto.noise.emergence import Rule
from impasto.reproduce.calibration import SWEEP

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fit_rule

LAWS = np.array(list(SWEEP.values()))


def base(half: float, best_offset: float, best_std: float) -> fit_rule.Base:
    """Scores that fall with the square of the distance from the best law, each pair on a level of its own."""
    x, std = LAWS[:, 0] - half, LAWS[:, 1]
    shape = -0.01 * (x - best_offset) ** 2 - 0.06 * (std - best_std) ** 2
    levels = np.random.default_rng(0).uniform(0.55, 0.9, (8, 2))
    return fit_rule.Base("base", {0.1: half - 3, 0.5: half, 0.9: half + 3}, shape[:, None, None] + levels)


def test_the_planted_rule_is_found() -> None:
    bases = [base(-1.5, 1.25, 1.5), base(0.5, 1.25, 1.5)]
    rule, worth = fit_rule.best(fit_rule.fit(bases), bases)
    assert rule == Rule(1.25, 0.0, 1.5)
    assert np.isclose(
        worth, np.mean([2 * s * t / (s + t) for s, t in [b.scores.max(0).mean(0) for b in bases]], 0), 0.03
    )


def test_a_level_of_a_base_or_pair_changes_nothing() -> None:
    bases = [base(-1.5, 1.25, 1.5), base(0.5, 1.25, 1.5)]
    again = [bases[0], fit_rule.Base("base", bases[1].points, bases[1].scores - 0.2)]
    assert np.allclose(fit_rule.fit(bases).coefficients, fit_rule.fit(again).coefficients)


def test_laws_outside_of_the_sweep_do_not_count() -> None:
    bases = [base(-1.5, 0, 5), base(0.5, 0, 5)]  # the wider the better
    assert fit_rule.best(fit_rule.fit(bases), bases)[0] == Rule(0, 0.0, 3)
