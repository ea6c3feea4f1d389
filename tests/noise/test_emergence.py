"""The curve of a style's emergence on synthetic scores; the plot."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from impasto.calibration.emergence import (
    Rule,
    Scores,
    crossing,
    decided_share,
    isotonic,
    match_resolution,
    measure_emergence,
    published,
    style_shares,
)
from impasto.calibration.plot import plot
from impasto.errors import UserError
from impasto.noise.equivalence import for_noise_prediction


def normal_cdf(x, mean, std):
    return np.array([0.5 * (1 + math.erf((v - mean) / (std * math.sqrt(2)))) for v in x])


def synthetic(mean=-3.0, std=1.5, late=0.0, prompts=40, noise=0.02, seed=0):
    """Scores of a style with the decided share of N(mean, std^2); late: shift of the curve of `since`."""
    rng = np.random.default_rng(seed)
    levels = np.arange(-9.0, 4.5, 0.75)
    low, high = rng.uniform(0.05, 0.2, prompts), rng.uniform(0.6, 0.95, prompts)
    until = low[:, None] + (high - low)[:, None] * normal_cdf(levels, mean, std)
    since = low[:, None] + (high - low)[:, None] * (1 - normal_cdf(levels, mean + late, std))
    jitter = lambda: noise * rng.standard_normal((prompts, len(levels)))  # noqa: E731
    return Scores(levels, high, low, until + jitter(), since + jitter())


def test_measure_emergence_recovers_known_law():
    found = measure_emergence(synthetic(), Rule(offset=0, scale=1, floor=0.1))
    at = {share: place for share, (place, _) in found.points.items()}
    assert at[0.5] == pytest.approx(-3, abs=0.1)
    assert at[0.1] == pytest.approx(-3 - 1.2816 * 1.5, abs=0.25) and at[0.9] == pytest.approx(
        -3 + 1.2816 * 1.5, abs=0.25
    )
    assert found.law == pytest.approx((-3, 1.5), abs=0.15)
    low, high = found.mean_interval
    assert low < -3 < high and high - low < 0.5
    assert all(where == "" for _, where in found.points.values())


def test_measure_emergence_averages_both_directions():
    """50 % at -4 by `until` and at -2 by `since`: -3, and wider."""
    one, other = measure_emergence(synthetic(noise=0)), measure_emergence(synthetic(mean=-4.0, late=2.0, noise=0))
    assert other.points[0.5][0] == pytest.approx(one.points[0.5][0], abs=0.02)
    assert other.points[0.1][0] < one.points[0.1][0] and other.points[0.9][0] > one.points[0.9][0]


def test_style_shares_match_formula():
    scores = Scores(
        np.array([-2.0, 0.0]), np.full(3, 0.8), np.full(3, 0.2), np.full((3, 2), 0.5), np.full((3, 2), 0.35)
    )
    until, since = style_shares(scores)
    assert until == pytest.approx([0.5, 0.5]) and since == pytest.approx([0.25, 0.25])
    assert decided_share(scores) == pytest.approx([(0.5 + 0.75) / 2] * 2)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 3, 2, 4], [1, 2.5, 2.5, 4]),
        ([3, 2, 1], [2, 2, 2]),
        ([0, 1, 2], [0, 1, 2]),
        ([1, 1, 0, 5], [2 / 3] * 3 + [5]),
    ],
)
def test_isotonic_pools_violators(values, wanted):
    assert isotonic(values) == pytest.approx(wanted)


def test_isotonic_matches_closed_form():
    """Against the closed form: the largest mean of a left part's smallest right mean (Robertson et al. 1988, 1.4)."""
    values = np.random.default_rng(1).standard_normal(12)
    n = len(values)
    closed = [max(min(values[i : j + 1].mean() for j in range(k, n)) for i in range(k + 1)) for k in range(n)]
    assert isotonic(values) == pytest.approx(closed)


def test_crossing_inside_and_outside_levels():
    levels, curve = np.array([-4.0, -2.0, 0.0]), np.array([0.2, 0.4, 0.8])
    assert crossing(levels, curve, 0.3) == (pytest.approx(-3.0), "")
    assert crossing(levels, curve, 0.6) == (pytest.approx(-1.0), "")
    assert crossing(levels, curve, 0.1) == (-4.0, "below")
    assert crossing(levels, curve, 0.9) == (0.0, "above")


def test_rule_with_other_parameters():
    points = {0.1: -5.0, 0.5: -3.0, 0.9: -1.0}
    assert Rule()(points) == (-2.0, 2.25)  # as in docs/noise-calibration.md
    assert Rule(offset=0, scale=1, floor=2)(points) == (-3.0, 2.0)  # the width of 4 is a std of 1.56: below the floor
    assert Rule(offset=-1.5, scale=2.0, floor=0.5)(points) == pytest.approx((-4.5, 2 * 4 / 2.5631))
    assert measure_emergence(synthetic(), Rule(offset=-1)).law[0] == pytest.approx(
        measure_emergence(synthetic()).law[0] - 2
    )


def test_rule_of_noise_prediction_is_converted():
    points = {0.1: -5.0, 0.5: -3.0, 0.9: -1.0}
    assert Rule(offset=3)(points, lowest=-4.7) == for_noise_prediction(0, 2.25, -4.7)
    scores = synthetic()
    noise, flow = measure_emergence(scores, Rule(offset=3), -4.7), measure_emergence(scores, Rule(offset=3))
    assert noise.law == for_noise_prediction(*flow.law, -4.7)
    assert noise.mean_interval[0] < noise.law[0] < noise.mean_interval[1] < flow.mean_interval[0]


@pytest.mark.parametrize(
    "changes", [{"offset": math.nan}, {"scale": -1.0}, {"floor": 0.0}, {"floor": math.inf}], ids=str
)
def test_rule_with_bad_parameter_raises(changes):
    with pytest.raises(UserError, match="scale at least 0 and floor above 0"):
        Rule(**changes)


def test_match_resolution_shifts_by_ratio_of_positions():
    assert match_resolution(-6, 128 * 128) == -6
    assert match_resolution(-6, 16 * 16) == pytest.approx(-6 + 4.1589, abs=1e-4)
    table = published(256)
    assert table["style-friendly"]["matched_mean"] == -1.84 and table["sd3"]["matched_mean"] == 1.96


@pytest.mark.parametrize("gap", [0.0, -0.3])
def test_measure_emergence_without_effect_raises(gap):
    scores = synthetic()
    none = Scores(scores.log_snr, scores.nowhere + gap, scores.nowhere, scores.until, scores.since)
    with pytest.raises(UserError, match="no significant difference"):
        measure_emergence(none)


def calibrated(found, **more) -> dict:
    """As `calibrate` returns it."""
    return found.as_dict() | {"base": "b", "settings": {"size": 128}, "prompts": 40, "published": published(256)} | more


def paths(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of the polylines or polygons of a class."""
    found = [e.get("points", "") for e in ElementTree.fromstring(svg).iter() if e.get("class", "").startswith(kind)]
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found if points]


def test_plot_has_curves_band_and_the_published_mean():
    result = calibrated(measure_emergence(synthetic()))
    svg = plot(result)
    assert "published law's mean (-6), matched: -1.84" in "".join(ElementTree.fromstring(svg).itertext())
    curves = paths(svg, "curve")
    assert [len(curve) for curve in curves] == [len(result["levels"])] * 3 and len(paths(svg, "area")[0]) == 2 * len(
        curves[0]
    )
    assert all(b[1] <= a[1] + 0.1 for a, b in pairwise(curves[-1])), "what is decided rises: y falls"
    moved = plot(result | {"levels": [row | {"decided": 0.5} for row in result["levels"]]})
    assert len({y for _, y in paths(moved, "curve")[-1]}) == 1


def test_plot_ends_the_law_where_the_base_does():
    found = measure_emergence(synthetic(), Rule(offset=-3, floor=3))  # N(-6, 3^2), the curve's levels from -9 on
    whole, cut = (paths(plot(r), "dashed")[0] for r in (calibrated(found), calibrated(found, range=[-5.4, 7.1])))
    assert cut[0][0] > whole[0][0] + 60 and abs(cut[-1][0] - whole[-1][0]) < 40


def test_plot_label_at_the_right_edge_goes_left():
    """Of a point beyond the levels, which lies at the last of them."""
    result = calibrated(measure_emergence(synthetic()))
    last = result["levels"][-1]["log_snr"]
    result["points"]["90%"] |= {"log_snr": last, "outside": "above"}
    texts = [e for e in ElementTree.fromstring(plot(result)).iter() if e.text == f"90% at >= {last:.1f}"]
    assert [e.get("text-anchor") for e in texts if e.tag.endswith("text")] == ["end"]
