"""Equivalent laws of noise-predicting bases, against integrals and against the losses."""

import numpy as np
import pytest
import torch

from impasto.noise.equivalence import equivalent_flow_law, for_noise_prediction
from impasto.noise.laws import StyleFriendly, Truncated, UniformTime
from impasto.noise.schedule import RectifiedFlow, VariancePreserving


@pytest.mark.parametrize(("mean", "std"), [(-2.0, 2.0), (0.2, 1.25), (3.0, 0.5), (-1.8, 3.0)])
def test_for_noise_prediction_matches_integral(mean, std):
    """Against the integral of N(mean, std^2) (1 + e^(lam/2))^2 / e^lam."""
    lam = np.linspace(-60, 60, 200_001)
    logs = -(((lam - mean) / std) ** 2) / 2 + 2 * np.log1p(np.exp(lam / 2)) - lam
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    expected = weights @ lam
    assert for_noise_prediction(mean, std) == pytest.approx(
        (expected, np.sqrt(weights @ (lam - expected) ** 2)), rel=1e-6
    )


def test_for_noise_prediction_limits_mean_to_schedule_end():
    own, own_std = for_noise_prediction(-2, 3)
    assert for_noise_prediction(-2, 3, lowest=-4) == (-4 - 2 * own_std, own_std) and own < -4 - 2 * own_std
    assert for_noise_prediction(0.2, 1.25, lowest=-4.7) == for_noise_prediction(0.2, 1.25)


@pytest.mark.parametrize(("mean", "std"), [(-2.0, 1.0), (0.2, 1.25), (3.0, 0.5)])
def test_equivalent_flow_law_inverts_for_noise_prediction(mean, std):
    """Approximately: only the moments of the mixture are kept."""
    back = equivalent_flow_law(StyleFriendly(*for_noise_prediction(mean, std)), -40, 40)
    assert back == pytest.approx((mean, std), abs=0.03)


def test_equivalent_flow_law_of_truncated_law_uses_inside_only():
    own, low, high = StyleFriendly(-6.0, 2.0), -4.74, 6.37
    assert equivalent_flow_law(own, low, high) == pytest.approx(
        equivalent_flow_law(Truncated(own, low, high), low, high)
    )
    assert equivalent_flow_law(own, low, high)[0] > low


def test_weights_match_ratio_of_losses():
    """For one wrong x^, the ratio of a flow's velocity loss to the noise loss is (1 + e^(-lam/2))^2."""
    lam = torch.linspace(-6, 6, 25, dtype=torch.float64)
    x, guess, eps = 0.7, 0.2, -1.1
    alpha, sigma = RectifiedFlow().alpha_sigma(lam)
    z = alpha * x + sigma * eps
    velocity = ((z - alpha * guess) / sigma - guess) - (eps - x)
    schedule = VariancePreserving.scaled_linear(0.00085, 0.012)
    alpha, sigma = schedule.alpha_sigma(lam)
    z = alpha * x + sigma * eps
    noise = (z - alpha * guess) / sigma - eps
    torch.testing.assert_close(velocity**2 / noise**2, (1 + torch.exp(-lam / 2)) ** 2)


def test_equivalent_flow_law_of_uniform_time_matches_weighted_draws():
    """SD1.5's pretraining law: the integral's mean equals the weighted mean of draws."""
    schedule = VariancePreserving.scaled_linear(0.00085, 0.012)
    mean, std = equivalent_flow_law(UniformTime(schedule), *schedule.range)
    drawn = UniformTime(schedule).quantile((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    weight = torch.sigmoid(drawn / 2) ** 2
    expected = (weight * drawn).sum() / weight.sum()
    assert mean == pytest.approx(expected.item(), abs=0.05) and 0 < std < 4
