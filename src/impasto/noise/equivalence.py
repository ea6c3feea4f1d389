"""Equivalent noise laws of bases with different prediction targets (noise, velocity).

A noise law p weights the error of the predicted image, ||x^ - x||^2, by `p(lam) w(lam)`, where

    w = 1 / sigma^2        = (1 + e^(lam/2))^2   for a rectified flow's velocity
    w = alpha^2 / sigma^2  = e^lam               for noise prediction
    w = 1 / sigma^2        = 1 + e^lam           for v; within a factor of 2 of the first

So p with noise prediction is equivalent to `p(lam) sigmoid(lam/2)^2` on a rectified flow, a law of less noise. So
converted, the noise sweeps of two bases lie on one curve (docs/noise-calibration.md).
"""

import math

import numpy as np
import torch

from impasto.noise.laws import Law

LEVELS = 4001


def equivalent_flow_law(law: Law, low: float, high: float) -> tuple[float, float]:
    """(mean, std) of `p(lam) sigmoid(lam/2)^2` on [low, high]: the rectified flow's equivalent of a noise law on a
    noise-predicting base whose schedule spans these log-SNRs."""
    lam = torch.linspace(low, high, LEVELS, dtype=torch.float64)
    weights = law.pdf(lam) * torch.sigmoid(lam / 2) ** 2
    weights /= weights.sum()
    mean = weights @ lam
    return mean.item(), (weights @ (lam - mean) ** 2).sqrt().item()


def for_noise_prediction(mean: float, std: float, lowest: float = -math.inf) -> tuple[float, float]:
    """(mean, std) of the normal law of a noise-predicting base that is equivalent to N(mean, std^2) on a flow.

    N(mean, std^2) times (1 + e^(-lam/2))^2 is a mixture of three normal laws of the same std, at mean - k std^2 for
    k = 0, 1/2, 1, with weights proportional to (1, 2, 1) exp(-k mean + k^2 std^2 / 2); its mean and std are returned.
    The mean is limited to 2 std below `lowest`, the noisy end of the schedule, since truncation there would leave too
    little of a lower law to train on.
    """
    k = np.array([0.0, 0.5, 1.0])
    logits = np.log([1.0, 2.0, 1.0]) - k * mean + k**2 * std**2 / 2
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    mean_k = float(weights @ k)
    mixture_std = math.sqrt(std**2 + std**4 * float(weights @ (k - mean_k) ** 2))
    return max(mean - mean_k * std**2, lowest - 2 * mixture_std), mixture_std
