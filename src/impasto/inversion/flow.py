"""Inversion of a rectified flow: the noise from which it generates a given image, by Euler steps from data to noise.

    z' = z + (t' - t) v,    t = sigmoid(-lam / 2) the noise share

is the sampler's step (`FlowMatchEulerDiscreteScheduler`) in reverse, along the sampler's noise levels with their time
shift. v is predicted at the *target* level from the latents of the previous level, as in `ddim`.
"""

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family

REFINE = 1
"""Fixed-point iterations of each inversion step by default, without which mini-sd3 may come back below 25 dB."""


def levels(family: Family, steps: int, size: tuple[int, int]) -> Tensor:
    """log-SNRs, float64, from infinity (the image) through those of the pipeline's sampler at `size` (h, w)."""
    if steps < 1:
        raise UserError(f"steps of an inversion must be at least 1, not {steps}")
    sampler = family.sampling_levels(steps, size).flip(0)
    return torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), sampler])


def step(z: Tensor, velocity: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """Step z (B, C, h, w) from log-SNR `lam` (a scalar) to `lam_next`."""
    return z + (torch.sigmoid(-lam_next / 2) - torch.sigmoid(-lam / 2)) * velocity


def direction(family: Family, z: Tensor, lam_B: Tensor, prediction: Tensor) -> Tensor:
    """The velocity, which is the family's prediction."""
    return prediction
