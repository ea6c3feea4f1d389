"""Offset noise: every channel of the noise is shifted as a whole, `eps <- eps + s randn(B, C, 1, 1)`.

Guttenberg 2023, "Diffusion with offset noise" (crosslabs.org). The shifted eps is what is mixed in and what the target
is made of. A pixel's variance becomes 1 + s^2, the covariance of two pixels of a channel s^2.

White noise of n positions has a channel mean of variance 1/n; s^2 n is how many times that the offset adds, and so what
a number of s means at a resolution: the Style-Friendly SNR sampler's .1 (with the SD3 sampler) and .01 (with its own
law) were found at n = 128^2, where they add 164 and 1.6 times. At 16 x 16 that is s = .8 and .08.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from impasto.noise.laws import PUBLISHED_POSITIONS, Law

MUCH, LITTLE = 40.0, 0.1  # s^2 n; sigma .05 and .0025 at 128^2
HIGH = -4.0  # median log-SNR, at 128^2, below which a law trains mostly on high noise


def offset(eps: Tensor, generators: Sequence[Generator], scale: float) -> Tensor:
    """eps (B, C, h, w) with the offset, one per item and channel; eps itself, and nothing drawn, when scale is 0."""
    if not scale:
        return eps
    shift = torch.stack([torch.randn(eps.shape[1], generator=g) for g in generators]).to(eps)
    return eps + scale * shift[:, :, None, None]


def warn(scale: float, law: Law, positions: int) -> None:
    """Warn where `scale` does next to nothing on latents of so many positions, or works against the law."""
    added = scale**2 * positions
    if not scale:
        return
    if added < LITTLE:
        same = scale * math.sqrt(PUBLISHED_POSITIONS / positions)
        warnings.warn(
            f"offset_noise {scale:g} has next to no effect: it adds {added:.1%} to what the mean of {positions} latent "
            f"positions varies anyway; what it is at 1024 px would be {same:.2g} here",
            stacklevel=2,
        )
    median = law.quantile(torch.tensor(0.5, dtype=torch.float64)).item() - math.log(PUBLISHED_POSITIONS / positions)
    if added > MUCH and median < HIGH:
        advised = 0.01 * math.sqrt(PUBLISHED_POSITIONS / positions)
        warnings.warn(
            f"offset_noise {scale:g} is much beside a noise law of high noise: there a picture is little more than its "
            f"mean colour, which the offset hides, and pictures are drawn from noise without one; {advised:.2g} is the "
            "paper's with such a law",
            stacklevel=2,
        )
