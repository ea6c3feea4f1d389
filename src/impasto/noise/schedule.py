"""Schedules: log-SNR to mixing weights and timesteps. `z_t = alpha x + sigma eps`, `lam = log(alpha^2 / sigma^2)`.

A base of masked tokens has a mask ratio m instead of a share of noise, on the same axis: alpha = 1 - m, sigma = m.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """Maps the log-SNR `lam_B` to the mixing weights and to the timestep that conditions the model, and back.

    range: the lowest (noisiest) and the highest log-SNR of the schedule. masked: whether latents are token ids, of
    which noise masks some, instead of numbers to which it is added.
    """

    masked: ClassVar[bool]

    @property
    def range(self) -> tuple[float, float]: ...

    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]: ...

    def timestep(self, lam: Tensor) -> Tensor: ...

    def log_snr(self, t: Tensor) -> Tensor: ...

    def add_noise(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor: ...


class Gaussian(ABC):
    """What schedules of Gaussian noise share."""

    masked: ClassVar[bool] = False

    @abstractmethod
    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]: ...

    def add_noise(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        """`z_t = alpha x + sigma eps`, mixed in float32."""
        alpha_B, sigma_B = self.alpha_sigma(lam.float())
        return per_item(alpha_B, x) * x + per_item(sigma_B, x) * eps


class ShareOfNoise:
    """Schedules with alpha + sigma = 1, whose time is the share sigma times `scale`: `lam = 2 log((1 - t) / t)`."""

    scale: float = 1.0

    @property
    def range(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """`(1 - t, t)`, each by its own sigmoid, so that neither loses precision near 0."""
        return torch.sigmoid(lam / 2), torch.sigmoid(-lam / 2)

    def timestep(self, lam: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(-lam / 2)

    def log_snr(self, t: Tensor) -> Tensor:
        """The inverse of `timestep`; t in (0, scale), -inf at `scale`."""
        t = t / self.scale
        return 2 * (torch.log1p(-t) - torch.log(t))


@dataclass(frozen=True)
class RectifiedFlow(ShareOfNoise, Gaussian):
    """`x_t = (1 - t) x_0 + t eps`, hence `lam = 2 log((1 - t) / t)` and `t = sigmoid(-lam / 2)`.

    Source: Esser et al. 2024 (SD3), eq. 13; Style-Friendly SNR sampler, eq. 1-3. The time is the noise share,
    `t = sigma` in (0, 1), 1 being pure noise. `scale` is the model's timestep at t = 1 (SD3's transformer: 1000).
    """

    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class VariancePreserving(Gaussian):
    """`z_t = sqrt(ac_t) x + sqrt(1 - ac_t) eps`, hence `lam = log(ac / (1 - ac))` and `alpha^2 = sigmoid(lam)`.

    Ho et al. 2020 (DDPM), arXiv 2006.11239, eq. 4. levels: lam at t = 0, 1, .., T - 1, falling, float64. Between them
    lam is linear in t, so that every log-SNR of the range has a float timestep and need not be rounded to a level.
    """

    levels: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "VariancePreserving":
        """From a scheduler's `alphas_cumprod`, clamped to [2^-24, 1 - 2^-24] (zero terminal SNR has 0)."""
        ac = alphas_cumprod.double().clamp(2**-24, 1 - 2**-24)
        return cls(torch.log(ac) - torch.log1p(-ac))

    @classmethod
    def scaled_linear(cls, first: float, last: float, steps: int = 1000) -> "VariancePreserving":
        """`beta = linspace(sqrt(first), sqrt(last), steps)^2`: SD1.5 and SDXL with .00085, .012."""
        beta = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
        return cls.from_alphas_cumprod(torch.cumprod(1 - beta, 0))

    @property
    def range(self) -> tuple[float, float]:
        return self.levels[-1].item(), self.levels[0].item()

    def alpha_sigma(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()

    def timestep(self, lam: Tensor) -> Tensor:
        """t in [0, T - 1], interpolated in float64. Raises ValueError outside `range`."""
        levels, level = self.levels, lam.detach().cpu().double()
        if ((level < levels[-1] - 1e-4) | (level > levels[0] + 1e-4)).any():
            raise ValueError(f"log-SNR {lam.tolist()} outside of the schedule's {self.range}")
        right = torch.searchsorted(-levels, -level).clamp(1, len(levels) - 1)
        high, low = levels[right - 1], levels[right]
        return (right - 1 + (high - level) / (high - low)).clamp(0, len(levels) - 1).to(lam)

    def log_snr(self, t: Tensor) -> Tensor:
        """The inverse of `timestep`; t in [0, T - 1]."""
        levels = self.levels.to(t)
        left = t.long().clamp(0, len(levels) - 2)
        return torch.lerp(levels[left], levels[left + 1], t - left)


@dataclass(frozen=True)
class MaskRatio(ShareOfNoise):
    """Token ids of which the share m is masked, `lam = 2 log((1 - m) / m)`, `m = sigmoid(-lam / 2)`.

    Chang et al. 2022 (MaskGIT), arXiv 2202.04200; Muse, arXiv 2301.00704. The time is m, in (0, 1). mask: the id of
    masked tokens.
    """

    mask: int
    masked: ClassVar[bool] = True

    def add_noise(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        """x (B, 1, h, w), ids, with round(m h w) places masked, at least one: those where eps (B, 1, h, w) is largest.

        With eps drawn independently these places are uniformly random.
        """
        places = eps.flatten(1)
        count_B = (self.timestep(lam.float()) * places.shape[1]).round().clamp(min=1)
        rank = places.argsort(dim=1, descending=True).argsort(dim=1)
        return torch.where((rank < count_B[:, None]).view(x.shape), self.mask, x)


def per_item(scale_B: Tensor, x: Tensor) -> Tensor:
    """`scale_B` as (B, 1, 1, ...), to broadcast over the items of `x`."""
    return scale_B.view(-1, *[1] * (x.ndim - 1))
