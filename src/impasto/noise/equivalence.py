"""What a noise law counts for where a base predicts the noise, not a velocity.

A level counts `p(lam) w(lam)` on the error of the picture, ||x^ - x||^2, with

    w = 1 / sigma^2        = (1 + e^(lam/2))^2   for a rectified flow's velocity
    w = alpha^2 / sigma^2  = e^lam               for the noise
    w = 1 / sigma^2        = 1 + e^lam           for v; within a factor of 2 of the first

So a law p on a base that predicts the noise counts as `p(lam) sigmoid(lam/2)^2` does on a rectified flow: a law of less
noise. Two bases' sweeps lie on one curve when they are counted so (docs/noise-calibration.md).
"""

import math

import numpy as np
import torch

from impasto.noise.laws import Law

LEVELS = 4001


def as_flow(law: Law, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of `p(lam) sigmoid(lam/2)^2` from low to high: what a law on a base that predicts the
    noise and has these levels counts as on a rectified flow."""
    lam = torch.linspace(low, high, LEVELS, dtype=torch.float64)
    share = law.pdf(lam) * torch.sigmoid(lam / 2) ** 2
    share /= share.sum()
    middle = share @ lam
    return middle.item(), (share @ (lam - middle) ** 2).sqrt().item()


def for_noise_prediction(mean: float, std: float, lowest: float = -math.inf) -> tuple[float, float]:
    """(mean, std) of the law by which a base that predicts the noise learns as a rectified flow by N(mean, std^2) does.

    N(mean, std^2) times (1 + e^(-lam/2))^2 is three normal laws of its standard deviation, at mean - k std^2 for
    k = 0, 1/2, 1, in shares that go as (1, 2, 1) exp(-k mean + k^2 std^2 / 2): mean and standard deviation of their
    mixture. The mean is no further below `lowest`, the end of the schedule, than 2 standard deviations: what is left of
    a law beyond is too little to train by.
    """
    k = np.array([0.0, 0.5, 1.0])
    logs = np.log([1.0, 2.0, 1.0]) - k * mean + k**2 * std**2 / 2
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    middle = float(shares @ k)
    own_std = math.sqrt(std**2 + std**4 * float(shares @ (k - middle) ** 2))
    return max(mean - middle * std**2, lowest - 2 * own_std), own_std
