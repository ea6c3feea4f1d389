"""Offset noise: one normal per item and channel is added to the noise, `eps <- eps + s randn(B, C, 1, 1)`.

Guttenberg 2023, "Diffusion with offset noise" (crosslabs.org). The shifted eps is used for both the noisy latent and
the target. A pixel's variance becomes 1 + s^2, the covariance of two pixels of a channel s^2.

The channel mean of white noise over n positions has variance 1/n; the offset adds s^2, that is s^2 n times as much. The
same s is therefore weaker at fewer positions: the Style-Friendly SNR sampler's .1 (with the SD3 sampler) and .01 (with
its own law) were tuned at n = 128^2, where s^2 n is 164 and 1.6. At 16 x 16 that is s = .8 and .08.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from impasto.noise.laws import PUBLISHED_POSITIONS, Law

MAX_HIGH_NOISE_RATIO, MIN_RATIO = 40.0, 0.1  # s^2 n; s = .05 and .0025 at 128^2
HIGH_NOISE_MEDIAN = -4.0  # median log-SNR at 128^2 below which a law trains mostly on high noise


def add_offset(eps: Tensor, generators: Sequence[Generator], scale: float) -> Tensor:
    """eps (B, C, h, w) plus `scale` times one normal per item and channel; at scale 0 eps itself, without a draw."""
    if not scale:
        return eps
    shift = torch.stack([torch.randn(eps.shape[1], generator=g) for g in generators]).to(eps)
    return eps + scale * shift[:, :, None, None]


def warn_ineffective(scale: float, law: Law, positions: int) -> None:
    """Warn when `scale` has almost no effect on latents of `positions` positions, or works against the law."""
    ratio = scale**2 * positions
    if not scale:
        return
    if ratio < MIN_RATIO:
        equivalent = scale * math.sqrt(PUBLISHED_POSITIONS / positions)
        warnings.warn(
            f"offset_noise {scale:g} has almost no effect: it adds {ratio:.1%} to the variance of the mean of "
            f"{positions} latent positions; the equivalent of this value at 1024 px is {equivalent:.2g} here",
            stacklevel=2,
        )
    median = law.quantile(torch.tensor(0.5, dtype=torch.float64)).item() - math.log(PUBLISHED_POSITIONS / positions)
    if ratio > MAX_HIGH_NOISE_RATIO and median < HIGH_NOISE_MEDIAN:
        advised = 0.01 * math.sqrt(PUBLISHED_POSITIONS / positions)
        warnings.warn(
            f"offset_noise {scale:g} is large for a law of high noise: at such levels little more than an image's mean "
            "colour is visible, which the offset hides, and images are generated from noise without an offset; the "
            f"paper uses {advised:.2g} with such a law",
            stacklevel=2,
        )
