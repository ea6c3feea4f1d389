"""What a law counts for on a base that predicts the noise: against integrals, and against the losses themselves."""

import numpy as np
import pytest
import torch

from impasto.noise.equivalence import as_flow, for_noise_prediction
from impasto.noise.laws import StyleFriendly, Truncated, UniformTime
from impasto.noise.schedule import RectifiedFlow, VariancePreserving


@pytest.mark.parametrize(("mean", "std"), [(-2.0, 2.0), (0.2, 1.25), (3.0, 0.5), (-1.8, 3.0)])
def test_the_law_of_a_base_that_predicts_the_noise(mean, std):
    """Against the integral of N(mean, std^2) (1 + e^(lam/2))^2 / e^lam."""
    lam = np.linspace(-60, 60, 200_001)
    logs = -(((lam - mean) / std) ** 2) / 2 + 2 * np.log1p(np.exp(lam / 2)) - lam
    share = np.exp(logs - logs.max())
    share /= share.sum()
    middle = share @ lam
    assert for_noise_prediction(mean, std) == pytest.approx((middle, np.sqrt(share @ (lam - middle) ** 2)), rel=1e-6)


def test_the_law_for_noise_stays_at_the_schedule():
    own, own_std = for_noise_prediction(-2, 3)
    assert for_noise_prediction(-2, 3, lowest=-4) == (-4 - 2 * own_std, own_std) and own < -4 - 2 * own_std
    assert for_noise_prediction(0.2, 1.25, lowest=-4.7) == for_noise_prediction(0.2, 1.25)


@pytest.mark.parametrize(("mean", "std"), [(-2.0, 1.0), (0.2, 1.25), (3.0, 0.5)])
def test_there_and_back(mean, std):
    """Only the moments are the same, as the mixture is no normal law; next to it here."""
    back = as_flow(StyleFriendly(*for_noise_prediction(mean, std)), -40, 40)
    assert back == pytest.approx((mean, std), abs=0.03)


def test_a_cut_law_counts_as_what_is_left_of_it():
    own, low, high = StyleFriendly(-6.0, 2.0), -4.74, 6.37
    assert as_flow(own, low, high) == pytest.approx(as_flow(Truncated(own, low, high), low, high))
    assert as_flow(own, low, high)[0] > low


def test_the_weights_are_those_of_the_losses():
    """One wrong picture x^, told as a velocity of a flow and as noise: the losses' ratio is (1 + e^(-lam/2))^2."""
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


def test_uniform_time_counts_little_noise():
    """SD1.5's own training, uniform in its time: the mean over its draws, each weighted, is the integral's."""
    schedule = VariancePreserving.scaled_linear(0.00085, 0.012)
    mean, std = as_flow(UniformTime(schedule), *schedule.range)
    drawn = UniformTime(schedule).quantile((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    weight = torch.sigmoid(drawn / 2) ** 2
    expected = (weight * drawn).sum() / weight.sum()
    assert mean == pytest.approx(expected.item(), abs=0.05) and 0 < std < 4
