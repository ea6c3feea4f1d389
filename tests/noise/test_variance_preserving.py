"""Variance-preserving schedules, SD1.5's among them (methods.md E1, E10), and noise laws on them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.errors import UserError
from impasto.noise.laws import LogitNormal, StyleFriendly, Truncated, Uniform, UniformTime, truncate_to_schedule
from impasto.noise.schedule import RectifiedFlow, VariancePreserving

SD15 = VariancePreserving.scaled_linear(0.00085, 0.012)


def test_scaled_linear_matches_reference_numbers():
    """E1: ac[0] = 0.99915, ac[999] = 0.0046601, its root 0.0682649."""
    alpha, sigma = SD15.alpha_sigma(SD15.log_snr(torch.tensor([0.0, 999.0], dtype=torch.float64)))
    assert (alpha**2).tolist() == pytest.approx([0.99915, 0.0046601], abs=1e-7)
    assert alpha[1].item() == pytest.approx(0.0682649, abs=1e-7)
    assert (alpha**2 + sigma**2).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_scaled_linear_matches_diffusers():
    from diffusers import DDPMScheduler

    own = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(VariancePreserving.from_alphas_cumprod(own.alphas_cumprod).levels, SD15.levels, atol=1e-3)
    x, eps, t = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 500, 999])
    z = SD15.add_noise(x, eps, SD15.log_snr(t.double()).float())
    assert torch.allclose(z, own.add_noise(x, eps, t), atol=1e-5)


def test_timestep_of_sd15_matches_reference_numbers():
    """E10: +7.0694 .. -5.3640; lam = 0 near t = 354; nearest t for -2, -3, -4, -5: 647, 771, 876, 968."""
    assert SD15.range == pytest.approx((-5.3640, 7.0694), abs=1e-4)
    lam = torch.tensor([0.0, -2, -3, -4, -5], dtype=torch.float64)
    assert SD15.timestep(lam).round().tolist() == [354, 647, 771, 876, 968]
    uniform = SD15.levels
    assert uniform.mean().item() == pytest.approx(-0.9665, abs=1e-4)
    assert uniform.std(correction=0).item() == pytest.approx(2.3886, abs=1e-4)


@given(st.floats(0, 999))
def test_timestep_inverts_log_snr(t):
    t = torch.tensor([t], dtype=torch.float64)
    assert (SD15.timestep(SD15.log_snr(t)) - t).abs().item() < 1e-9


@given(st.floats(-5.3640, 7.0693))
def test_log_snr_inverts_timestep_in_float32(lam):
    lam = torch.tensor([lam])
    t = SD15.timestep(lam)
    assert t.dtype == torch.float32 and 0 <= t.item() <= 999
    assert SD15.log_snr(t).item() == pytest.approx(lam.item(), abs=1e-3)
    alpha, sigma = SD15.alpha_sigma(lam.double())
    assert (2 * torch.log(alpha / sigma)).item() == pytest.approx(lam.item(), abs=1e-9)


def test_timestep_outside_range_raises():
    with pytest.raises(ValueError, match="outside"):
        SD15.timestep(torch.tensor([-2.0, -6.0]))


def test_zero_terminal_snr_is_finite():
    from diffusers import DDIMScheduler

    zero = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    assert zero.alphas_cumprod[-1] < 1e-6
    schedule = VariancePreserving.from_alphas_cumprod(zero.alphas_cumprod)
    assert -17 < schedule.range[0] < -14 and schedule.timestep(torch.tensor([-12.0])).item() > 990


def test_style_friendly_on_sd15_is_truncated_not_clamped():
    """E10: 62.5 % of N(-6, 2^2); the end itself must not get it."""
    law = truncate_to_schedule(StyleFriendly(), SD15)
    assert isinstance(law, Truncated) and law.cut == pytest.approx(0.625, abs=1e-3)
    lam = law([torch.Generator().manual_seed(0)] * 20_000)
    assert lam.dtype == torch.float32 and lam.min() >= SD15.range[0] - 1e-5 and lam.max() <= SD15.range[1]
    assert (lam < SD15.range[0] + 0.05).float().mean() < 0.03
    SD15.timestep(lam)


LAWS = [StyleFriendly(), LogitNormal(-1, 0.5, 2.0), Uniform(), StyleFriendly(2.0, 1.0)]


@pytest.mark.parametrize("plain", LAWS, ids=str)
def test_truncated_pdf_cdf_quantile_and_draws_agree(plain):
    """The density sums to 1 and to the cdf; the draws follow it (Kolmogorov-Smirnov, 1 %); quantile inverts cdf."""
    law, n = truncate_to_schedule(plain, SD15), 20_000
    grid = torch.linspace(*SD15.range, 400_001, dtype=torch.float64)
    total = torch.cumsum(law.pdf(grid), 0) * (grid[1] - grid[0])
    assert total[-1].item() == pytest.approx(1, abs=1e-3)
    assert (total - law.cdf(grid)).abs().max() < 1e-3
    assert law.pdf(torch.tensor([-5.5, 7.2])).tolist() == [0, 0]
    lam = law([torch.Generator().manual_seed(1)] * n).double().sort().values
    assert (law.cdf(lam) - torch.arange(1, n + 1) / n).abs().max() < 1.628 / n**0.5 + 1e-3
    p = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    assert law.cdf(law.quantile(p)).tolist() == pytest.approx(p.tolist(), abs=1e-9)


def test_uniform_on_sd15_is_uniform_in_its_time():
    law = truncate_to_schedule(Uniform(), SD15)
    assert isinstance(law, UniformTime)
    lam = law([torch.Generator().manual_seed(0)] * 50_000)
    assert lam.mean().item() == pytest.approx(-0.9665, abs=0.03) and lam.std().item() == pytest.approx(2.3886, abs=0.03)


def test_truncate_to_schedule_of_flow_keeps_law():
    law = StyleFriendly()
    assert (
        truncate_to_schedule(law, RectifiedFlow()) is law
        and truncate_to_schedule(Uniform(), RectifiedFlow()) == Uniform()
    )


@pytest.mark.parametrize("plain", [*LAWS[:2], Uniform()], ids=str)
def test_cdf_and_quantile_match_pdf(plain):
    grid = torch.linspace(-80, 80, 320_001, dtype=torch.float64)
    total = torch.cumsum(plain.pdf(grid), 0) * (grid[1] - grid[0])
    assert (plain.cdf(grid) - total).abs().max() < 1e-3
    p = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert plain.cdf(plain.quantile(p)).tolist() == pytest.approx(p.tolist())


def test_truncate_to_schedule_of_law_below_range_raises():
    with pytest.raises(UserError, match=r"lie below log-SNR -5\.36, where this base has pure noise"):
        truncate_to_schedule(StyleFriendly(-20, 1), SD15)
