"""DDIM inversion: the noise from which a variance-preserving model generates a given image.

    z' = sqrt(a' / a) z + sqrt(a') (s(a') - s(a)) eps,    s(a) = sqrt(1 / a - 1)

is the deterministic step of Song et al. 2020 (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0) between the levels a and
a' of `alphas_cumprod`, in either direction; in log-SNR a = sigmoid(lam), s = exp(-lam / 2). InstaStyle (eq. 5 and 6)
omits the sqrt(a') of the second term, which is not this step. eps is predicted at the *target* level from the latents
of the previous level, as in prompt-to-prompt (Mokady et al. 2022, arXiv 2211.09794).
"""

from typing import Any

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family
from impasto.noise.schedule import VariancePreserving, per_item

REFINE = 0
"""Fixed-point iterations of each inversion step by default: mini-sd15 comes back at 38 to 44 dB without."""


def levels(family: Family, steps: int, size: tuple[int, int]) -> Tensor:
    """log-SNRs (steps + 1,), float64, at t = 0 and at leading spacing with offset 1 (50 steps: t = 1, 21, .., 981).

    t = 0 is the image's level (`set_alpha_to_one` False). Steps that do not divide the model's 1000 end before pure
    noise,
    as the spacing is rounded down: 300 end at t = 898. Raises UserError for more steps than the model has.
    """
    schedule = family.schedule
    assert isinstance(schedule, VariancePreserving)
    trained = len(schedule.levels)
    if not 1 <= steps < trained:
        raise UserError(f"steps of an inversion must be 1 to {trained - 1} for this base, not {steps}")
    t = 1 + torch.arange(steps, dtype=torch.float64) * (trained // steps)
    return schedule.log_snr(torch.cat([torch.zeros(1, dtype=torch.float64), t.clamp(max=trained - 1)]))


def step(z: Tensor, eps: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """Step z (B, C, h, w) from log-SNR `lam` (a scalar) to `lam_next`."""
    a, a_next = torch.sigmoid(lam), torch.sigmoid(lam_next)
    s, s_next = torch.exp(-lam / 2), torch.exp(-lam_next / 2)
    return (a_next / a).sqrt() * z + a_next.sqrt() * (s_next - s) * eps


def direction(family: Family, z: Tensor, lam_B: Tensor, prediction: Tensor) -> Tensor:
    """eps from the family's prediction (eps or v), by `z = alpha x + sigma eps` and target = p x + q eps:

    eps = (alpha target - p z) / (alpha q - sigma p).
    """
    zero, one = torch.zeros_like(z[:, :1, :1, :1]), torch.ones_like(z[:, :1, :1, :1])
    p, q = (family.target(x, eps, lam_B) for x, eps in ((one, zero), (zero, one)))
    alpha, sigma = (per_item(weight, z) for weight in family.schedule.alpha_sigma(lam_B))
    return (alpha * prediction - p * z) / (alpha * q - sigma * p)


def scheduler(config: Any) -> Any:
    """diffusers' DDIMScheduler on the noise schedule of another one's `config`, with the levels of `levels`.

    `leading` spacing with an offset of 1; the last step ends at alphas_cumprod[0] (`set_alpha_to_one` False).
    """
    from diffusers import DDIMScheduler

    own = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False, **own)
