"""Inversion noises of several styles in one (InstaStyle, eq. 11), and partly redrawn ones.

    z = (1 - M) z_1 + M z_2,    M (h, w) binary, exactly round(alpha h w) ones, shared by all channels

A choice of positions, not a weighted sum: the mixture keeps the variance of its parts, where (z_1 + z_2) / 2 would
halve it. The masks of all alpha come from one permutation of the positions, so that each contains the smaller ones.
"""

from collections.abc import Sequence
from math import fsum

import torch
from torch import Generator, Tensor

from impasto.coerce import check_share
from impasto.errors import UserError


def mask(alpha: float, size: tuple[int, int], generator: Generator) -> Tensor:
    """bool (h, w) with exactly round(alpha h w) ones. Raises UserError unless alpha is in [0, 1]."""
    check_share(alpha, "alpha")
    height, width = size
    order = torch.randperm(height * width, generator=generator)
    return (order < round(alpha * height * width)).view(height, width)


def regions(weights: Sequence[float], size: tuple[int, int], generator: Generator) -> Tensor:
    """int64 (h, w): which of the styles a position belongs to, in proportion to `weights`, which add up to 1.

    The last n styles of any n have round((sum of their weights) h w) positions; of two, the second has `mask`.
    Raises UserError for weights that are not shares of 1.
    """
    for weight in weights:
        check_share(weight, "weight")
    if not weights or abs(fsum(weights) - 1) > 1e-6:
        raise UserError(f"the weights of the styles must add up to 1, not {fsum(weights):g}")
    height, width = size
    order = torch.randperm(height * width, generator=generator)
    ends = [round(fsum(weights[i:]) * height * width) for i in range(1, len(weights))]
    return sum((order < end for end in ends), torch.zeros_like(order)).view(height, width)


def mix(noises: Sequence[Tensor], weights: Sequence[float], generator: Generator) -> Tensor:
    """(1, C, h, w): each position from one of `noises` (1, C, h, w), by `regions`.

    Raises UserError for noises of different shapes, and for weights that do not fit.
    """
    shapes = {tuple(z.shape[1:]) for z in noises}
    if len(shapes) != 1:
        raise UserError(
            f"noises of different sizes cannot be mixed: {sorted(shapes)}; invert the references at one size"
        )
    if len(weights) != len(noises):
        raise UserError(f"{len(noises)} noises but {len(weights)} weights: give one for each")
    z = torch.stack(list(noises))  # (styles, 1, C, h, w)
    style = regions(weights, (z.shape[-2], z.shape[-1]), generator).to(z.device)
    return z.gather(0, style.expand(1, *z.shape[1:]))[0]


def randomise(noise: Tensor, share: float, generator: Generator, eps: float = 1e-5) -> Tensor:
    """noise (1, C, h, w) with Gaussian noise at round(share h w) positions, of the inverted noise's mean and spread.

    The authors' `rand_scale`: at a masked position AdaIN(g, z) = std(z) (g - mean(g)) / std(g) + mean(z), per channel
    over all positions; variances have `eps` added. With the same generator the positions of a smaller share are among
    those of a larger one, and their values are the same. Raises UserError unless share is in [0, 1].
    """
    check_share(share, "noise-random")
    size = (noise.shape[-2], noise.shape[-1])
    redrawn = mask(share, size, generator).to(noise.device)
    gaussian = torch.randn(noise.shape, generator=generator).to(noise)
    mean, spread = moments(noise, eps)
    own_mean, own_spread = moments(gaussian, eps)
    return torch.where(redrawn, (gaussian - own_mean) / own_spread * spread + mean, noise)


def moments(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + eps) per item and channel, (B, C, 1, 1)."""
    var, mean = torch.var_mean(z, dim=(-2, -1), keepdim=True)
    return mean, (var + eps).sqrt()
