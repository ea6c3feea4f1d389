"""Schedules: what a log-SNR means to a model. `z_t = alpha x + sigma eps`, `lam = log(alpha^2 / sigma^2)`."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """Maps the log-SNR `lam_B` to the mixing weights and to the timestep that the model is told, and back."""

    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]: ...

    def timestep(self, lam: Tensor) -> Tensor: ...

    def log_snr(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RectifiedFlow:
    """`x_t = (1 - t) x_0 + t eps`, hence `lam = 2 log((1 - t) / t)` and `t = sigmoid(-lam / 2)`.

    Source: Esser et al. 2024 (SD3), eq. 13; Style-Friendly SNR sampler, eq. 1-3. The time is the noise share itself,
    `t = sigma` in (0, 1), 1 being pure noise. `scale` is what the model calls t = 1 (SD3's transformer: 1000).
    """

    scale: float = 1.0

    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """`(1 - t, t)`, each computed from its own side, so that neither loses digits in its tail."""
        return torch.sigmoid(lam / 2), torch.sigmoid(-lam / 2)

    def timestep(self, lam: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(-lam / 2)

    def log_snr(self, t: Tensor) -> Tensor:
        """The inverse of `timestep`; t in (0, scale)."""
        t = t / self.scale
        return 2 * (torch.log1p(-t) - torch.log(t))


def per_item(scale_B: Tensor, x: Tensor) -> Tensor:
    """`scale_B` shaped (B, 1, 1, ...) so that it multiplies `x` item by item."""
    return scale_B.view(-1, *[1] * (x.ndim - 1))


def mix(schedule: Schedule, x: Tensor, eps: Tensor, lam_B: Tensor) -> Tensor:
    """`z_t = alpha x + sigma eps`, mixed in float32."""
    alpha_B, sigma_B = schedule.alpha_sigma(lam_B.float())
    return per_item(alpha_B, x) * x + per_item(sigma_B, x) * eps
