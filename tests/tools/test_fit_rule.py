"""tools/fit_rule.py finds the rule that was planted in made-up sweeps."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from impasto.calibration.emergence import Rule
from impasto.noise.equivalence import equivalent_flow_law
from impasto.noise.laws import StyleFriendly
from impasto.reproduce.calibration import SWEEP

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import fit_rule


def base(half: float, best_offset: float, best_std: float, levels: tuple[float, float] | None = None) -> fit_rule.Base:
    """Scores that fall with the square of the distance from the best law, as laws count on this base; each pair is on a
    level of its own."""
    empty = fit_rule.Base("base", {0.1: half - 3, 0.5: half, 0.9: half + 3}, np.zeros((len(SWEEP), 8, 2)), levels)
    x, std = np.array([empty.place(*law, fit_rule.AS_COUNTED) for law in SWEEP.values()]).T
    shape = -0.01 * (x - best_offset) ** 2 - 0.06 * (std - best_std) ** 2
    return replace(empty, scores=shape[:, None, None] + np.random.default_rng(0).uniform(0.55, 0.9, (8, 2)))


FLOWS = [base(-1.5, 1.25, 1.5), base(0.5, 1.25, 1.5)]
ONE_OF_NOISE = [FLOWS[0], base(-1, 1.25, 1.5, (-4.7, 6.4))]


@pytest.mark.parametrize("form", [fit_rule.AS_DRAWN, fit_rule.AS_COUNTED])
def test_the_planted_rule_is_found(form: str) -> None:
    rule, worth = fit_rule.best(fit_rule.fit(FLOWS, form), FLOWS)
    assert rule == Rule(1.25, 0.0, 1.5)
    assert np.isclose(
        worth, np.mean([2 * s * t / (s + t) for s, t in [b.scores.max(0).mean(0) for b in FLOWS]], 0), 0.03
    )


def test_a_base_that_predicts_the_noise_has_the_same_rule() -> None:
    surface = fit_rule.better(ONE_OF_NOISE)
    assert surface.form == fit_rule.AS_COUNTED and np.allclose(surface.residual, 0)
    assert fit_rule.fit(ONE_OF_NOISE, fit_rule.AS_DRAWN).residual.sum() > 0.1
    rule, _ = fit_rule.best(surface, ONE_OF_NOISE)
    assert rule == Rule(1.25, 0.0, 1.5)
    mean, std = ONE_OF_NOISE[1].law(rule, surface.form)
    assert mean < 0 < std and equivalent_flow_law(StyleFriendly(mean, std), -4.7, 6.4) == pytest.approx(
        (0.25, 1.5), abs=0.1
    )


def test_a_level_of_a_base_or_pair_changes_nothing() -> None:
    again = [FLOWS[0], replace(FLOWS[1], scores=FLOWS[1].scores - 0.2)]
    first, second = (fit_rule.fit(bases, fit_rule.AS_DRAWN) for bases in (FLOWS, again))
    assert np.allclose(first.coefficients, second.coefficients)


def test_laws_outside_of_the_sweep_do_not_count() -> None:
    bases = [base(-1.5, 0, 5), base(0.5, 0, 5)]  # the wider the better
    assert fit_rule.best(fit_rule.fit(bases, fit_rule.AS_DRAWN), bases)[0] == Rule(0, 0.0, 3)
