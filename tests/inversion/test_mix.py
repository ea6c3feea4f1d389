"""Mixed and randomised inversion noise (methods.md E22)."""

import itertools

import pytest
import torch

from impasto.errors import UserError
from impasto.inversion.mix import mask, mix, randomise, regions
from impasto.noise.random import generator

SIZE = (64, 64)


def seeded(name="mask"):
    return generator(7, 0, name)


@pytest.mark.parametrize(
    ("alpha", "ones"), [(0, 0), (0.1, 410), (0.3, 1229), (0.5, 2048), (0.7, 2867), (0.9, 3686), (1, 4096)]
)
def test_mask_has_the_exact_number_of_ones(alpha, ones):
    assert mask(alpha, SIZE, seeded()).sum() == ones


def test_masks_of_one_seed_are_nested():
    masks = [mask(alpha, SIZE, seeded()) for alpha in (0.1, 0.3, 0.5, 0.9)]
    assert all((larger | ~smaller).all() for smaller, larger in itertools.pairwise(masks))
    assert (mask(0.5, SIZE, seeded()) != mask(0.5, SIZE, seeded("other"))).any()


def test_mix_of_two_is_the_masked_sum():
    a, b = torch.randn(2, 1, 4, 64, 64, generator=seeded("noise"))
    ones = mask(0.3, SIZE, seeded())
    assert torch.equal(mix([a, b], [0.7, 0.3], seeded()), torch.where(ones, b, a))
    assert torch.equal(mix([a, b], [1, 0], seeded()), a) and torch.equal(mix([a, b], [0, 1], seeded()), b)


def test_mix_keeps_unit_variance_where_the_mean_halves_it():
    a, b = torch.randn(2, 1, 4, 64, 64, generator=seeded("noise"))
    assert mix([a, b], [0.5, 0.5], seeded()).var().item() == pytest.approx(1, abs=0.03)
    assert ((a + b) / 2).var().item() == pytest.approx(0.5, abs=0.02)


def test_regions_of_several_styles_have_their_shares():
    found = regions([0.2, 0.5, 0.3], SIZE, seeded())
    counts = torch.bincount(found.flatten(), minlength=3).tolist()
    assert counts[2] == round(0.3 * 4096) and counts[1] + counts[2] == round(0.8 * 4096) and sum(counts) == 4096
    assert torch.equal(found == 2, mask(0.3, SIZE, seeded()))
    noises = [torch.full((1, 2, 64, 64), float(i)) for i in range(3)]
    assert torch.equal(mix(noises, [0.2, 0.5, 0.3], seeded())[0, 1], found.float())


def test_randomise_replaces_the_share_and_nothing_else():
    z = 2 + 3 * torch.randn(1, 4, 64, 64, generator=seeded("noise"))
    few, many = (randomise(z, share, seeded()) for share in (0.1, 0.4))
    changed = [(new != z).any(1)[0] for new in (few, many)]
    assert [int(positions.sum()) for positions in changed] == [410, round(0.4 * 4096)]
    assert (changed[1] | ~changed[0]).all() and torch.equal(few[0][:, changed[0]], many[0][:, changed[0]])
    assert torch.equal(randomise(z, 0, seeded()), z)


def test_randomised_wholly_keeps_mean_and_spread_per_channel():
    scale = torch.tensor([0.5, 1, 2, 4]).view(1, 4, 1, 1)
    z = scale * (1 + torch.randn(1, 4, 32, 32, generator=seeded("noise")))
    new = randomise(z, 1, seeded())
    assert torch.allclose(new.mean((2, 3)), z.mean((2, 3)), atol=1e-4)
    assert torch.allclose(new.std((2, 3)), z.std((2, 3)), rtol=1e-3)
    assert abs(torch.corrcoef(torch.stack([new[0, 0].flatten(), z[0, 0].flatten()]))[0, 1]) < 0.1


Z = torch.zeros(1, 4, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mask(1.2, SIZE, seeded()), "alpha must be from 0 to 1, not 1.2"),
        (lambda: randomise(Z, -0.1, seeded()), "noise-random must be from 0 to 1"),
        (lambda: mix([Z, Z], [0.5, 0.6], seeded()), "add up to 1, not 1.1"),
        (lambda: mix([Z, Z], [1], seeded()), "2 noises but 1 weights"),
        (lambda: mix([Z, Z[..., :4]], [0.5, 0.5], seeded()), "different sizes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()
