"""Noise laws: the paper's numbers (methods.md E7, E8), densities, and Kolmogorov-Smirnov tests."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.errors import UserError
from impasto.noise import NOISE_LAWS
from impasto.noise.laws import (
    LogitNormal,
    StyleFriendly,
    Truncated,
    Uniform,
    build_law,
    sd3,
    truncate_to_schedule,
    truncated_normal,
)
from impasto.noise.schedule import RectifiedFlow, VariancePreserving

N = 20_000
SHARED = [StyleFriendly(), StyleFriendly(-2.2, 3.0), sd3(), LogitNormal(3.0, 1.0), LogitNormal(-1, 0.5, 2.0)]
SHARED += [Uniform(), Uniform(3.0)]


def draws(a_law, n=N, seed=1):
    shared = torch.Generator().manual_seed(seed)
    return a_law([shared] * n)


def cdf(a_law):
    """Cumulative sum of the pdf on a fine grid, independent of `law.cdf`."""
    grid = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    return grid, torch.cumsum(a_law.pdf(grid), 0) * (grid[1] - grid[0])


@pytest.mark.parametrize("a_law", SHARED, ids=str)
def test_pdf_integrates_to_one(a_law):
    assert cdf(a_law)[1][-1].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("a_law", SHARED, ids=str)
def test_draws_follow_pdf(a_law):
    """Kolmogorov-Smirnov at the 1 % level."""
    lam = draws(a_law).double().sort().values
    grid, total = cdf(a_law)
    expected = total[torch.searchsorted(grid, lam).clamp(max=len(grid) - 1)]
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum((steps[1:] - expected).abs().max(), (expected - steps[:-1]).abs().max()).item()
    assert distance < 1.628 / math.sqrt(N)


def test_kolmogorov_smirnov_detects_wrong_sign():
    lam = (-draws(StyleFriendly())).double().sort().values
    grid, total = cdf(StyleFriendly())
    expected = total[torch.searchsorted(grid, lam).clamp(max=len(grid) - 1)]
    assert (torch.arange(1, N + 1) / N - expected).abs().max().item() > 0.9


def test_style_friendly_matches_paper():
    """mu -6, sigma 2: median t .952574, E[t] .930676, P(t > .9) .7889, P(t > .99) .0553, P(lambda < -6.52) .3974."""
    lam = draws(StyleFriendly(), 400_000)
    t = RectifiedFlow().timestep(lam)
    assert t.median().item() == pytest.approx(0.952574, abs=1e-3)
    assert t.mean().item() == pytest.approx(0.930676, abs=1e-3)
    assert (t > 0.9).float().mean().item() == pytest.approx(0.7889, abs=3e-3)
    assert (t > 0.99).float().mean().item() == pytest.approx(0.0553, abs=2e-3)
    assert (lam < -6.52).float().mean().item() == pytest.approx(0.3974, abs=3e-3)


def test_sd3_matches_paper_baseline():
    """logit-normal(0, 1) with shift 3 is N(-2 log 3, 2^2): median t .75, E[t] .714021, P(t > .9) .1360."""
    assert sd3().log_snr == pytest.approx((-2.19722, 2.0), abs=1e-5)
    t = RectifiedFlow().timestep(draws(sd3(), 400_000))
    assert t.median().item() == pytest.approx(0.75, abs=2e-3)
    assert t.mean().item() == pytest.approx(0.714021, abs=2e-3)
    assert (t > 0.9).float().mean().item() == pytest.approx(0.1360, abs=3e-3)


@given(st.floats(-3, 3), st.floats(0.2, 3), st.floats(0.1, 20))
def test_logit_normal_matches_logit_sigmoid_shift(mean, std, shift):
    """Against logit, sigmoid and time shift step by step."""
    z = torch.cat([torch.randn(1, generator=g) for g in [torch.Generator().manual_seed(5)] * 64]).double()
    u = torch.sigmoid(mean + std * z)
    t = shift * u / (1 + (shift - 1) * u)
    lam = draws(LogitNormal(mean, std, shift), 64, seed=5).double()
    assert torch.allclose(RectifiedFlow().timestep(lam), t, atol=1e-6)


def test_higher_mean_is_noisier_for_logit_normal_cleaner_for_style_friendly():
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


def test_laws_draw_one_float32_per_generator():
    for name in NOISE_LAWS:
        lam = build_law(name)([torch.Generator().manual_seed(i) for i in range(3)])
        assert lam.dtype == torch.float32 and lam.shape == (3,) and lam.isfinite().all()


def test_build_law_with_bad_name_or_parameter_raises():
    assert build_law("style-friendly", mean=-4.0, std=None) == StyleFriendly(-4.0)
    assert build_law("sd3") == LogitNormal(0, 1, 3)
    with pytest.raises(UserError, match="did you mean 'style-friendly'"):
        build_law("style_frendly")
    with pytest.raises(UserError, match=r"no noise\.shift"):
        build_law("style-friendly", shift=3.0)
    with pytest.raises(UserError, match=r"noise\.std must be above 0"):
        build_law("logit-normal", std=0.0)
    with pytest.raises(UserError, match=r"noise\.shift must be above 0"):
        build_law("logit-normal", shift=-1.0)


def test_log_snr_of_flow_and_shift_match_formulas():
    """E6: lambda = 2 log((1 - t) / t), round trip below 1e-12 in float64. E7: logit(t) ~ N(m, s^2) is N(-2m, (2s)^2);
    the shift t' = k t / (1 + (k - 1) t) takes 2 log k off lambda."""
    flow, t = RectifiedFlow(), torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    assert torch.allclose(flow.log_snr(t), 2 * torch.log((1 - t) / t), rtol=1e-14, atol=1e-14)
    assert (flow.timestep(flow.log_snr(t)) - t).abs().max() < 1e-12
    assert LogitNormal(0.7, 1.3).log_snr == pytest.approx((-1.4, 2.6))
    for k in (3.0, 0.375):
        difference = flow.log_snr(k * t / (1 + (k - 1) * t)) - flow.log_snr(t)
        assert difference.tolist() == pytest.approx([-2 * math.log(k)] * 999, abs=1e-9)
        assert LogitNormal(0, 1, k).log_snr[0] == pytest.approx(-2 * math.log(k))


def test_quantiles_and_shares_match_reference_numbers():
    """E8, from cdf and quantile."""
    law, baseline, flow = StyleFriendly(), sd3(), RectifiedFlow()
    t = flow.timestep(law.quantile(torch.tensor([0.5, 0.841344746, 0.158655254, 0.95, 0.05], dtype=torch.float64)))
    assert t.tolist() == pytest.approx([0.952574, 0.880797, 0.982014, 0.79497, 0.99048], abs=2e-6)
    lam = flow.log_snr(torch.tensor([0.9, 0.99], dtype=torch.float64))
    assert law.cdf(lam).tolist() == pytest.approx([0.7889, 0.0553], abs=5e-5)
    assert law.cdf(torch.tensor(-6.52)).item() == pytest.approx(0.3974, abs=5e-5)
    assert baseline.cdf(lam[:1]).item() == pytest.approx(0.1360, abs=5e-5)
    assert baseline.cdf(torch.tensor(-6.52)).item() == pytest.approx(0.0153, abs=5e-5)
    assert StyleFriendly(-6, 3).cdf(lam[:1]).item() == pytest.approx(0.7037, abs=5e-5)
    grid = torch.linspace(-40, 30, 70_001, dtype=torch.float64)
    for a_law, mean in ((law, 0.930676), (baseline, 0.714021), (StyleFriendly(-6, 3), 0.903389)):
        assert (a_law.pdf(grid) * flow.timestep(grid)).sum().item() * 0.001 == pytest.approx(mean, abs=2e-6)


def test_bfloat16_levels_round_to_pure_noise():
    """E11: 5.9e-4 of the draws round to t = 1 in bfloat16 (spacing 2^-8 near 1), none in float32."""
    flow = RectifiedFlow()
    p = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)[1:-1]
    t = flow.timestep(StyleFriendly().quantile(p).float())
    assert (t.bfloat16() == 1).float().mean().item() == pytest.approx(5.9e-4, abs=3e-5)
    assert t.dtype == torch.float32 and t.max() < 1 and t.min() > 0


BOUNDED = [truncated_normal(-6, 2, -8, -4), truncated_normal(0, 1, low=0.5), truncated_normal(-2, 3, high=-1)]


@pytest.mark.parametrize("a_law", BOUNDED, ids=str)
def test_truncated_normal_matches_closed_form(a_law):
    """cdf (Phi(z) - Phi(a)) / (Phi(b) - Phi(a)) by math.erf; Kolmogorov-Smirnov at the 1 % level; float32, inside."""
    mean, std, low, high = a_law.law.mean, a_law.law.std, a_law.low, a_law.high

    def phi(x):
        return (1 + math.erf((x - mean) / std / math.sqrt(2))) / 2

    lam = draws(a_law)
    assert lam.dtype == torch.float32 and low <= lam.min() and lam.max() <= high
    ordered = lam.double().sort().values
    expected = torch.tensor(
        [(phi(x) - phi(low)) / (phi(high) - phi(low)) for x in ordered.tolist()], dtype=torch.float64
    )
    assert (expected - torch.arange(1, N + 1) / N).abs().max().item() < 1.628 / math.sqrt(N)
    assert torch.allclose(a_law.cdf(ordered), expected, atol=1e-6)
    grid = torch.linspace(max(low, -40), min(high, 40), 400_001, dtype=torch.float64)
    assert torch.trapezoid(a_law.pdf(grid), grid).item() == pytest.approx(1, abs=1e-6)
    assert a_law.quantile(a_law.cdf(ordered[100])).item() == pytest.approx(ordered[100].item(), abs=1e-6)
    assert (ordered < low + 0.02).double().mean() < 0.03  # truncated, not clamped


def test_truncate_to_schedule_uses_closer_bounds():
    """The law's bounds or the schedule's, whichever are closer; on a flow the law needs a bound of its own."""
    sd15 = VariancePreserving.scaled_linear(0.00085, 0.012)
    law_ = truncate_to_schedule(truncated_normal(-6, 2), sd15)
    assert (
        law_ == truncate_to_schedule(StyleFriendly(), sd15)
        and isinstance(law_, Truncated)
        and law_.law == StyleFriendly()
    )
    assert truncate_to_schedule(truncated_normal(-6, 2, -4, 99), sd15) == Truncated(StyleFriendly(), -4, sd15.range[1])
    assert truncate_to_schedule(BOUNDED[0], RectifiedFlow()) == BOUNDED[0]
    assert truncate_to_schedule(BOUNDED[1], RectifiedFlow()) == BOUNDED[1]
    with pytest.raises(UserError, match=r"truncated-normal needs noise\.low or noise\.high"):
        truncate_to_schedule(truncated_normal(-6, 2), RectifiedFlow())
    with pytest.raises(UserError, match=r"noise\.low must be below noise\.high, not 3 and 3"):
        build_law("truncated-normal", low=3, high=3)
    with pytest.raises(UserError, match=r"has nothing between log-SNR 10\.00 and 20.00: choose another noise\.mean"):
        build_law("truncated-normal", low=10.0, high=20.0)
    with pytest.raises(UserError, match=r"'uniform' has no noise\.low"):
        build_law("uniform", low=0.0)
    with pytest.raises(UserError, match=r"'style-friendly' has no noise\.high"):
        build_law("style-friendly", high=0.0)
    assert build_law("truncated-normal", mean=-6.0, low=-8.0, high=-4.0) == BOUNDED[0]


def test_truncate_to_schedule_of_law_beyond_end_raises_with_share():
    flow, sd15 = RectifiedFlow(), VariancePreserving.scaled_linear(0.00085, 0.012)
    with pytest.raises(UserError, match=r"99\.9% of the noise levels lie below log-SNR -13\.81, .* has pure noise"):
        truncate_to_schedule(StyleFriendly(-20, 2), flow)
    with pytest.raises(
        UserError, match=r"100\.0% of the noise levels lie above log-SNR 13\.81, .* has hardly any noise"
    ):
        truncate_to_schedule(LogitNormal(-15), flow)
    with pytest.raises(UserError, match=r"99\.8% of the noise levels lie below log-SNR -5\.36"):
        truncate_to_schedule(StyleFriendly(-11, 2), sd15)
    with pytest.raises(UserError, match=r"lie above log-SNR 7\.07"):
        truncate_to_schedule(truncated_normal(0, 9, low=8.0), sd15)
    assert truncate_to_schedule(StyleFriendly(-15, 2), flow) and truncate_to_schedule(StyleFriendly(-9, 2), sd15)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_build_law_with_non_finite_parameter_raises(value):
    for name in ("style-friendly", "logit-normal", "truncated-normal"):
        with pytest.raises(UserError, match=r"noise\.mean must be a finite number"):
            build_law(name, mean=value)
        with pytest.raises(UserError, match=r"noise\.std must be above 0"):
            build_law(name, std=value)
    with pytest.raises(UserError, match=r"noise\.shift must be above 0"):
        build_law("sd3", shift=value)


def test_uniform_with_shift_matches_time_shift():
    """t' = k t / (1 + (k - 1) t) of the same uniform draws; refused on a variance-preserving schedule."""
    u = RectifiedFlow().timestep(draws(Uniform(), 64, seed=5).double())
    t = RectifiedFlow().timestep(draws(Uniform(3.0), 64, seed=5).double())
    assert torch.allclose(t, 3 * u / (1 + 2 * u), atol=1e-6)
    assert build_law("uniform", shift=3.0) == Uniform(3.0)
    with pytest.raises(UserError, match=r"a noise\.shift of the uniform law is for rectified flows"):
        truncate_to_schedule(Uniform(3.0), VariancePreserving.scaled_linear(0.00085, 0.012))
