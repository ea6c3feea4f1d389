"""Offset noise: covariance (methods.md E20), order of draws, warnings."""

import warnings

import pytest
import torch

from impasto.config import make_config, resolve
from impasto.data.draws import Draws
from impasto.data.prepare import Prepared
from impasto.errors import UserError
from impasto.noise.laws import StyleFriendly, build_law, sd3
from impasto.noise.offset import add_offset, warn_ineffective
from impasto.noise.random import generators

LAW = build_law("style-friendly")


def make_draws(scale, batch=3, channels=4, step=7):
    prepared = Prepared(torch.zeros(2, channels, 2, 2), {1: {"text": torch.arange(2.0)}}, {1: 1.0})
    return Draws(make_config(batch=batch, seed=5, offset_noise=scale), LAW, prepared)(step, 0)


@pytest.mark.parametrize("s", [0.1, 0.5])
def test_add_offset_has_expected_covariance(s):
    """E20: 1 + s^2 of a pixel, s^2 between two pixels of a channel, nothing between channels; mean 0."""
    n = 4000
    eps = torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    shifted = add_offset(eps, generators(0, 1, range(n)), s).flatten(2).double()  # (n, 2, 9)
    rows = torch.cat([shifted[:, 0], shifted[:, 1]], dim=1)
    cov, own = torch.cov(rows.T), torch.cov(eps.flatten(1).double().T)
    expected = own + s**2 * torch.block_diag(torch.ones(9, 9), torch.ones(9, 9))
    assert (cov - expected).abs().max().item() < 0.12 * s
    off = ~torch.eye(9, dtype=torch.bool)
    assert cov[:9, :9][off].mean().item() == pytest.approx(s**2, abs=0.1 * s**2 + 0.002)
    assert cov.diagonal().mean().item() == pytest.approx(1 + s**2, abs=0.02)
    assert cov[:9, 9:].mean().abs().item() < 0.002 + 0.05 * s**2


def test_offset_is_drawn_last_per_item():
    """The offset adds s times the item's next C normals and leaves all earlier draws unchanged."""
    (plain, lam, own), (shifted, same, later) = make_draws(0.0), make_draws(0.25)
    assert torch.equal(lam, same) and torch.equal(plain.x, shifted.x)
    expected = generators(5, 7, range(3))
    for i, g in enumerate(expected):
        torch.randint(2, (1,), generator=g), LAW([g])
        eps, shift = torch.randn(4, 2, 2, generator=g), torch.randn(4, generator=g)
        assert torch.equal(plain.eps[i], eps)
        assert torch.allclose(shifted.eps[i], eps + 0.25 * shift[:, None, None], atol=1e-6)
    assert torch.equal(make_draws(0.25, batch=1)[0].eps[0], shifted.eps[0])
    assert [torch.rand(1, generator=g) for g in later] == [torch.rand(1, generator=g) for g in expected]
    assert [torch.rand(1, generator=g) for g in own] != [torch.rand(1, generator=g) for g in later]


def test_add_offset_at_scale_0_draws_nothing():
    own = generators(0, 1, range(2))
    eps = torch.ones(2, 4, 2, 2)
    assert add_offset(eps, own, 0.0) is eps
    assert [torch.rand(1, generator=g) for g in own] == [torch.rand(1, generator=g) for g in generators(0, 1, (0, 1))]


def test_target_uses_offset_noise(tiny_flux):
    """The velocity target is (eps + offset) - x; on FLUX before packing."""
    from impasto.bases.loader import load

    batch, lam, _ = make_draws(0.5)
    family = load(str(tiny_flux), device="cpu", precision="fp32")
    assert torch.equal(family.target(batch.x, batch.eps, lam), batch.eps - batch.x) and batch.eps.ndim == 4


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_offset_noise_out_of_range_raises(value):
    with pytest.raises(UserError, match=r"noise\.offset must be from 0 to 1 \(.1 is usual\)"):
        resolve(offset_noise=value)


@pytest.mark.parametrize(
    ("scale", "a_law", "positions", "message"),
    [
        (0.1, sd3(), 128**2, ""),
        (0.01, StyleFriendly(), 128**2, ""),
        (0.1, StyleFriendly(), 128**2, "is large for a law of high noise"),
        (0.01, StyleFriendly(-1.84), 16**2, "it adds 2.6% to the variance of the mean of 256 latent positions"),
        (0.08, StyleFriendly(-1.84), 16**2, ""),
        (0.8, StyleFriendly(-1.84), 16**2, "the paper uses 0.08"),
        (0.0, StyleFriendly(), 16**2, ""),
    ],
)
def test_warn_ineffective_warns_by_scale_and_law(scale, a_law, positions, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_ineffective(scale, a_law, positions)
    assert len(caught) == bool(message) and (not message or message in str(caught[0].message))
