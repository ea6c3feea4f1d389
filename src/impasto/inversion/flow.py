"""Inversion of a rectified flow: the noise from which it draws a given picture, by Euler steps from data to noise.

    z' = z + (t' - t) v,    t = sigmoid(-lam / 2) the noise share

is the sampler's own step (`FlowMatchEulerDiscreteScheduler`) walked backwards, along the sampler's own noise levels,
time shift included. v is that of the *target* level, told to the model with the latents of the level before, as in
`ddim`.
"""

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family


def levels(family: Family, steps: int, size: tuple[int, int]) -> Tensor:
    """Those of the pipeline's sampler on latents of `size` (h, w), from infinity (the picture) to noise, float64."""
    if steps < 1:
        raise UserError(f"steps of an inversion must be at least 1, not {steps}")
    sampler = family.sampling_levels(steps, size).flip(0)
    return torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), sampler])


def step(z: Tensor, velocity: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """z (B, C, h, w) at log-SNR `lam` (a scalar) brought to `lam_next`."""
    return z + (torch.sigmoid(-lam_next / 2) - torch.sigmoid(-lam / 2)) * velocity


def direction(family: Family, z: Tensor, lam_B: Tensor, prediction: Tensor) -> Tensor:
    """The velocity is what such a family predicts."""
    return prediction
