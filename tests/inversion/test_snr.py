"""SNR of the inversion noise against the paper's figure (methods.md E1 to E5)."""

import pytest
import torch
from diffusers import DDPMScheduler

from impasto.inversion import ddim
from impasto.inversion.snr import correlation, ddim_snr, paper_snr, snr_of_correlation
from impasto.noise.schedule import VariancePreserving

SD15 = VariancePreserving.scaled_linear(0.00085, 0.012)
ALPHAS = torch.sigmoid(SD15.levels)


def alphas_of_50_steps():
    class Family:
        schedule = SD15

    return torch.sigmoid(ddim.levels(Family(), 50, (16, 16)))


def test_alphas_are_stable_diffusion_s():
    """E1."""
    assert ALPHAS[0].item() == pytest.approx(0.99915, abs=1e-9)
    assert ALPHAS[-1].item() == pytest.approx(0.0046601, abs=5e-8)
    assert ALPHAS[-1].sqrt().item() == pytest.approx(0.0682649, abs=5e-8)
    assert SD15.levels[-1].exp().item() == pytest.approx(0.00468192, abs=5e-9)


def test_paper_snr_of_1000_steps_is_the_paper_s():
    """E2: 0.015144, in float64 and from diffusers' float32 alphas."""
    assert paper_snr(ALPHAS) == pytest.approx(0.0151441219, abs=5e-11)
    kind = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert paper_snr(DDPMScheduler(**kind).alphas_cumprod) == pytest.approx(0.0151441, abs=5e-9)


def test_paper_snr_with_other_first_levels_misses_it():
    """E2: the indexings that were tried beside alpha_0 = ac[0]."""
    one = torch.ones(1, dtype=torch.float64)
    found = [paper_snr(torch.cat([one, ALPHAS])), paper_snr(torch.cat([one, ALPHAS[:-1]])), paper_snr(ALPHAS[1:])]
    assert found == pytest.approx([0.015131, 0.015525, 0.015157], abs=5e-7)


@pytest.mark.parametrize(
    ("steps", "snr"), [(200, 531.36), (400, 195.15), (600, 30.079), (800, 1.30602), (1000, 0.0151441)]
)
def test_paper_snr_of_a_prefix(steps, snr):
    """E3."""
    assert paper_snr(ALPHAS[:steps]) == pytest.approx(snr, rel=1e-4)


def test_snr_depends_on_the_number_of_steps_and_on_the_step_s_form():
    """E4: 50 steps; DDIM's own coefficient, with independent and with coherent predictions."""
    assert paper_snr(alphas_of_50_steps()) == pytest.approx(0.0010857, abs=5e-8)
    assert ddim_snr(ALPHAS, coherent=False) == pytest.approx(1.7403, abs=5e-5)
    assert ddim_snr(ALPHAS, coherent=True) == pytest.approx(0.0047047, abs=5e-8)


def test_snr_of_a_zero_terminal_schedule_is_zero():
    """E5: the control for signal that is left."""
    kind = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    alphas = DDPMScheduler(**kind, rescale_betas_zero_snr=True).alphas_cumprod.double()
    assert (alphas[-1] / (1 - alphas[-1])).item() < 1e-6
    assert paper_snr(alphas) < 1e-6 and ddim_snr(alphas, coherent=True) < 1e-6


def test_measured_snr_is_that_of_a_mixture():
    generator = torch.Generator().manual_seed(0)
    x, n = torch.randn(2, 1, 4, 200, 200, generator=generator)
    rho = correlation(3 + 0.5 * x + 2 * n, x)
    assert snr_of_correlation(rho) == pytest.approx(0.5**2 / 2**2, rel=0.03)
    assert correlation(x, 1 - x) == pytest.approx(-1)
