"""Merging is exact; resizing is the best that a rank allows, and its error is what a dense SVD says."""

import pytest
import torch

from impasto.errors import UserError
from impasto.interop.lora.write import Adapter, Lora
from impasto.styles.combine import merge, resize

X, Y = "unet.mid_block.attentions.0.proj_in", "unet.mid_block.resnets.0.conv1"


def lora(rank, alpha, *, kernel=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    down, up = ((rank, 7, *kernel), (9, rank, *[1] * len(kernel)))
    return Lora(torch.randn(down, generator=generator), torch.randn(up, generator=generator), alpha)


def dense(one):
    """alpha / r B A, written out."""
    return one.alpha / one.down.shape[0] * one.up.flatten(1).double() @ one.down.flatten(1).double()


def test_merge_is_the_weighted_sum():
    one = Adapter("sd15", {X: lora(3, 6.0), Y: lora(2, 1.0, kernel=(3, 3))})
    two = Adapter("sd15", {X: lora(4, 1.0, seed=1)})
    both = merge([one, two], [0.7, -0.5])
    assert torch.allclose(dense(both.layers[X]), 0.7 * dense(one.layers[X]) - 0.5 * dense(two.layers[X]), atol=1e-5)
    assert torch.allclose(dense(both.layers[Y]), 0.7 * dense(one.layers[Y]), atol=1e-5)
    assert both.layers[X].rank == 7 and both.layers[Y].down.shape == (2, 7, 3, 3)
    assert merge([one, two], [1.0, 0.0]).layers[X].rank == 3


def test_what_cannot_be_merged():
    one = Adapter("sd15", {X: lora(3, 6.0)})
    with pytest.raises(UserError, match="they are for flux, sd15"):
        merge([one, Adapter("flux", {"transformer.x_embedder": lora(2, 1.0)})], [1, 1])
    with pytest.raises(UserError, match="other widths"):
        merge([one, Adapter("sd15", {X: Lora(torch.ones(2, 8), torch.ones(9, 2), 1.0)})], [1, 1])
    with pytest.raises(UserError, match="all weights are zero"):
        merge([one, one], [0, 0])


def test_resize_is_the_truncated_svd_and_says_its_error():
    whole = Adapter("sd15", {X: lora(5, 8.0), Y: lora(4, 2.0, kernel=(3, 3)), "unet.conv_in": lora(2, 2.0)})
    small, loss = resize(whole, 2)
    errors, lost, all_ = [], 0.0, 0.0
    for layer, one in whole.layers.items():
        u, values, v = torch.linalg.svd(dense(one), full_matrices=False)
        assert torch.allclose(dense(small.layers[layer]), u[:, :2] * values[:2] @ v[:2], atol=1e-5)
        errors.append((values[2:].norm() / values.norm()).item())
        lost, all_ = lost + values[2:].norm() ** 2, all_ + values.norm() ** 2
        assert small.layers[layer].down.shape == (2, *one.down.shape[1:])
    assert loss.worst == pytest.approx(max(errors), rel=1e-4) and loss.mean == pytest.approx(sum(errors) / 3, rel=1e-4)
    assert loss.total == pytest.approx((lost / all_).sqrt().item(), rel=1e-4) and 0.05 < loss.total < 1
    assert loss.worst_layer == list(whole.layers)[errors.index(max(errors))]
    assert small.layers["unet.conv_in"] is whole.layers["unet.conv_in"]


def test_a_layer_narrower_than_the_rank_stays_whole():
    """A merge can have a rank above the smaller side of a layer, and so can what it is resized to."""
    narrow = Lora(torch.randn(8, 4), torch.randn(9, 8), 3.0)
    small, loss = resize(Adapter("sd15", {X: narrow}), 6)
    assert small.layers[X].rank == small.layers[X].alpha == 4 and loss.total < 1e-6
    assert torch.allclose(dense(small.layers[X]), dense(narrow), atol=1e-5)


def test_a_rank_that_is_really_there_costs_nothing():
    """The same style twice has rank 6 on paper and 3 in truth."""
    one = Adapter("sd15", {X: lora(3, 6.0)})
    small, loss = resize(merge([one, one], [0.5, 0.5]), 3)
    assert loss.total < 1e-6 and torch.allclose(dense(small.layers[X]), dense(one.layers[X]), atol=1e-5)


@pytest.mark.parametrize(("rank", "message"), [(0, "at least 1"), (3, "not below the style's own"), (9, "not below")])
def test_ranks_that_are_refused(rank, message):
    with pytest.raises(UserError, match=message):
        resize(Adapter("sd15", {X: lora(3, 6.0)}), rank)
