"""Schedules: the log-SNR of a rectified flow (methods.md E6, E8, E11)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impasto.noise.schedule import RectifiedFlow

flow = RectifiedFlow()


@given(st.floats(1e-6, 1 - 1e-6))
def test_timestep_inverts_log_snr_in_float64(t):
    t = torch.tensor([t], dtype=torch.float64)
    assert (flow.timestep(flow.log_snr(t)) - t).abs().item() < 1e-12


@given(st.floats(-30, 30), st.floats(1, 1000))
def test_log_snr_inverts_timestep(lam, scale):
    lam = torch.tensor([lam], dtype=torch.float64)
    schedule = RectifiedFlow(scale)
    assert schedule.log_snr(schedule.timestep(lam)).item() == pytest.approx(lam.item(), abs=1e-2 if lam < -20 else 1e-6)


@given(st.floats(-25, 25))
def test_alpha_sigma_have_given_log_snr(lam):
    lam = torch.tensor([lam], dtype=torch.float64)
    alpha, sigma = flow.alpha_sigma(lam)
    assert (2 * torch.log(alpha / sigma) - lam).abs().item() < 1e-9
    assert (alpha + sigma - 1).abs().item() < 1e-12


def test_timestep_at_known_points():
    lam = torch.tensor([-6.0, 0.0], dtype=torch.float64)
    assert flow.timestep(lam).tolist() == pytest.approx([0.952574, 0.5], abs=1e-6)
    assert RectifiedFlow(1000.0).timestep(lam).tolist() == pytest.approx([952.574, 500.0], abs=1e-3)


def test_mix_uses_level_of_each_item():
    x, eps = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), -1.0)
    z = flow.add_noise(x, eps, flow.log_snr(torch.tensor([0.25, 0.75])))
    assert z[0].unique().tolist() == pytest.approx([3 * 0.75 - 0.25])
    assert z[1].unique().tolist() == pytest.approx([3 * 0.25 - 0.75], abs=1e-6)


def test_float32_timestep_stays_below_1_unlike_bfloat16():
    lam = -6 + 2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    t = flow.timestep(lam)
    assert (t < 1).all()
    assert (t.bfloat16() == 1).float().mean().item() == pytest.approx(5.9e-4, abs=2e-4)
