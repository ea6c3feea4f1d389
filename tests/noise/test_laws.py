"""Noise laws: the paper's numbers (methods.md E7, E8), densities, and Kolmogorov-Smirnov tests."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.errors import UserError
from impasto.noise.laws import LAWS, LogitNormal, StyleFriendly, Uniform, law, sd3
from impasto.noise.schedule import RectifiedFlow

N = 20_000
SHARED = [StyleFriendly(), StyleFriendly(-2.2, 3.0), sd3(), LogitNormal(3.0, 1.0), LogitNormal(-1, 0.5, 2.0), Uniform()]


def draws(a_law, n=N, seed=1):
    shared = torch.Generator().manual_seed(seed)
    return a_law([shared] * n)


def cdf(a_law):
    """The density summed up on a fine grid: independent of how the law draws."""
    grid = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    return grid, torch.cumsum(a_law.pdf(grid), 0) * (grid[1] - grid[0])


@pytest.mark.parametrize("a_law", SHARED, ids=str)
def test_density_is_one_in_all(a_law):
    assert cdf(a_law)[1][-1].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("a_law", SHARED, ids=str)
def test_draws_follow_the_density(a_law):
    """Kolmogorov-Smirnov at the 1 % level."""
    lam = draws(a_law).double().sort().values
    grid, total = cdf(a_law)
    expected = total[torch.searchsorted(grid, lam).clamp(max=len(grid) - 1)]
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum((steps[1:] - expected).abs().max(), (expected - steps[:-1]).abs().max()).item()
    assert distance < 1.628 / math.sqrt(N)


def test_kolmogorov_smirnov_sees_a_wrong_sign():
    lam = (-draws(StyleFriendly())).double().sort().values
    grid, total = cdf(StyleFriendly())
    expected = total[torch.searchsorted(grid, lam).clamp(max=len(grid) - 1)]
    assert (torch.arange(1, N + 1) / N - expected).abs().max().item() > 0.9


def test_style_friendly_is_the_paper_s():
    """mu -6, sigma 2: median t .952574, E[t] .930676, P(t > .9) .7889, P(t > .99) .0553, P(lambda < -6.52) .3974."""
    lam = draws(StyleFriendly(), 400_000)
    t = RectifiedFlow().timestep(lam)
    assert t.median().item() == pytest.approx(0.952574, abs=1e-3)
    assert t.mean().item() == pytest.approx(0.930676, abs=1e-3)
    assert (t > 0.9).float().mean().item() == pytest.approx(0.7889, abs=3e-3)
    assert (t > 0.99).float().mean().item() == pytest.approx(0.0553, abs=2e-3)
    assert (lam < -6.52).float().mean().item() == pytest.approx(0.3974, abs=3e-3)


def test_sd3_sampler_is_the_paper_s_baseline():
    """logit-normal(0, 1) with shift 3 is N(-2 log 3, 2^2): median t .75, E[t] .714021, P(t > .9) .1360."""
    assert sd3().log_snr == pytest.approx((-2.19722, 2.0), abs=1e-5)
    t = RectifiedFlow().timestep(draws(sd3(), 400_000))
    assert t.median().item() == pytest.approx(0.75, abs=2e-3)
    assert t.mean().item() == pytest.approx(0.714021, abs=2e-3)
    assert (t > 0.9).float().mean().item() == pytest.approx(0.1360, abs=3e-3)


@given(st.floats(-3, 3), st.floats(0.2, 3), st.floats(0.1, 20))
def test_logit_normal_in_its_own_words(mean, std, shift):
    """Drawn the long way (logit, sigmoid, time shift) the levels are the same."""
    z = torch.cat([torch.randn(1, generator=g) for g in [torch.Generator().manual_seed(5)] * 64]).double()
    u = torch.sigmoid(mean + std * z)
    t = shift * u / (1 + (shift - 1) * u)
    lam = draws(LogitNormal(mean, std, shift), 64, seed=5).double()
    assert torch.allclose(RectifiedFlow().timestep(lam), t, atol=1e-6)


def test_more_mean_is_more_noise_in_logit_normal_and_less_in_style_friendly():
    noise = {m: RectifiedFlow().timestep(draws(LogitNormal(m))).mean() for m in (-1.0, 1.0)}
    assert noise[1.0] > noise[-1.0]
    assert (
        RectifiedFlow().timestep(draws(StyleFriendly(-6))).mean()
        > RectifiedFlow().timestep(draws(StyleFriendly(-2))).mean()
    )


def test_style_friendly_equals_logit_normal_3_and_shift_exp_3():
    lam = torch.linspace(-12, 2, 50)
    for same in (LogitNormal(3, 1), LogitNormal(0, 1, 20.0855)):
        assert torch.allclose(same.pdf(lam), StyleFriendly().pdf(lam), atol=1e-5)


def test_levels_are_float32_one_per_generator():
    for build, _, _ in LAWS.values():
        lam = build()([torch.Generator().manual_seed(i) for i in range(3)])
        assert lam.dtype == torch.float32 and lam.shape == (3,) and lam.isfinite().all()


def test_the_table_and_its_errors():
    assert law("style-friendly", mean=-4.0, std=None) == StyleFriendly(-4.0)
    assert law("sd3") == LogitNormal(0, 1, 3)
    with pytest.raises(UserError, match="did you mean 'style-friendly'"):
        law("style_frendly")
    with pytest.raises(UserError, match="no noise_shift"):
        law("style-friendly", shift=3.0)
    with pytest.raises(UserError, match="noise_std must be above 0"):
        law("logit-normal", std=0.0)
    with pytest.raises(UserError, match="noise_shift must be above 0"):
        law("logit-normal", shift=-1.0)
