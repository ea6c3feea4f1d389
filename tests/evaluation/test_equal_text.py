"""Style at equal text on curves whose answer is known."""

import math
from itertools import pairwise

import pytest

from impasto.evaluation.equal_text import jackknife, mean_curve, rank_at_equal_text, style_at_text

FALLING = [(0.9, 0.1), (0.7, 0.5), (0.5, 0.9), (0.3, 0.95)]


@pytest.mark.parametrize(
    ("text", "style"), [(0.8, 0.3), (0.7, 0.5), (0.5, 0.9), (0.9, 0.1), (0.3, 0.95), (0.1, 0.95), (0.91, None)]
)
def test_style_at_text_falling_curve_interpolates(text, style):
    found = style_at_text(FALLING, text)
    assert (found and found.style) == (pytest.approx(style) if style else None)


def test_style_at_text_curve_past_its_best_takes_the_best():
    """A strength that has less of both is passed over, and a dip between two strengths does not count."""
    assert style_at_text([(0.8, 0.6), (0.5, 0.9), (0.45, 0.7)], 0.4).style == 0.9
    assert style_at_text([(0.6, 0.9), (0.4, 0.2), (0.7, 0.3)], 0.6).style == 0.9


def test_style_at_text_is_monotone_in_text():
    curve = [(0.5, 0.4), (0.8, 0.7), (0.3, 0.9), (0.6, 0.2)]
    styles = [style_at_text(curve, text / 100).style for text in range(81)]
    assert all(a >= b for a, b in pairwise(styles)) and styles[0] == 0.9


def test_style_at_text_shares_place_other_values():
    found = style_at_text(FALLING, 0.65)
    assert found.shares == pytest.approx((0, 0.75, 0.25, 0)) and found.of([0.75, 1.0, 1.25, 1.5]) == pytest.approx(
        1.06, abs=0.01
    )
    assert style_at_text([], 0.5) is None


def test_jackknife_of_a_mean_is_its_standard_error():
    values = {"a": 0.1, "b": 0.5, "c": 0.6, "d": 0.2}

    def mean(units):
        return sum(values[unit] for unit in units) / len(units)

    centre = mean(list(values))
    sd = math.sqrt(sum((v - centre) ** 2 for v in values.values()) / 3)
    assert jackknife(list(values), mean) == pytest.approx(sd / 2)
    assert jackknife(["a", "b"], mean) is None
    assert jackknife(list(values), lambda units: mean(units) if "a" in units else None) is None


def test_rank_at_equal_text_orders_by_style_and_names_who_does_not_reach():
    curves = {
        "weak": {"x": [(0.9, 0.2), (0.8, 0.3)], "y": [(0.7, 0.2), (0.6, 0.3)]},
        "strong": {"x": [(0.9, 0.6), (0.6, 0.8)], "y": [(0.7, 0.6), (0.4, 0.8)]},
        "lost": {"x": [(0.3, 0.9), (0.2, 1.0)], "y": [(0.3, 0.9), (0.2, 1.0)]},
    }
    strengths = dict.fromkeys(curves, (1.0, 1.5))
    text, ranks = rank_at_equal_text(curves, strengths, "weak", 1)
    assert text == pytest.approx(0.7) and [rank.name for rank in ranks] == ["strong", "weak", "lost"]
    assert ranks[0].style == pytest.approx(0.6 + 0.2 / 3) and ranks[0].strength == pytest.approx(1 + 0.5 / 3)
    assert ranks[1].style == pytest.approx(0.3) and ranks[2].style is None and ranks[2].strength is None


def test_mean_curve_needs_the_same_strengths():
    assert mean_curve([[(1.0, 0.0)], [(0.0, 1.0)]]) == [(0.5, 0.5)]
    with pytest.raises(ValueError):
        mean_curve([[(1.0, 0.0)], []])
