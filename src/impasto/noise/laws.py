"""Noise laws: how often a model is trained at which noise level.

A law is a distribution of the log-SNR `lam` (float32; smaller is noisier): `law(generators)` draws one level per
generator, `law.pdf(lam)` is its density. Every parameter has one sign here, whatever other tools do with theirs:
`style_friendly` takes the mean *log-SNR* (lower = more noise), `logit_normal` the mean logit of the *noise share*
t (higher = more noise). Both say so in LAWS, the one table in which a name is looked up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Generator, Tensor

from impasto.errors import UserError, nearest


class Law(Protocol):
    def __call__(self, generators: Sequence[Generator]) -> Tensor: ...

    def pdf(self, lam: Tensor) -> Tensor: ...


def normals(generators: Sequence[Generator]) -> Tensor:
    """One standard normal per generator, shape (n,), float32."""
    return torch.cat([torch.randn(1, generator=g) for g in generators])


def normal_pdf(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def check_std(std: float) -> None:
    if not (std > 0 and math.isfinite(std)):
        raise UserError(f"noise_std must be above 0, not {std}")


@dataclass(frozen=True)
class StyleFriendly:
    """`lam ~ N(mean, std^2)`, no time shift. Choi et al., "Style-Friendly SNR Sampler", arXiv 2411.14793, eq. 6.

    mean: log-SNR, -6 in the paper (t has median .953); lower is noisier. std: 2 (SD3.5) or 3 (FLUX) in the paper.
    """

    mean: float = -6.0
    std: float = 2.0

    def __post_init__(self) -> None:
        check_std(self.std)

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        return self.mean + self.std * normals(generators)

    def pdf(self, lam: Tensor) -> Tensor:
        return normal_pdf(lam, self.mean, self.std)


@dataclass(frozen=True)
class LogitNormal:
    """`logit(u) ~ N(mean, std^2)`, then `t = shift u / (1 + (shift - 1) u)`. Esser et al. 2024 (SD3), eq. 19 and 23.

    In log-SNR that is `lam ~ N(-2 mean - 2 log shift, (2 std)^2)`. t is the share of *noise*, so a higher mean and a
    higher shift are noisier. (0, 1, shift 3) is SD3's own sampler: N(-2.197, 2^2).
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_std(self.std)
        if not self.shift > 0:
            raise UserError(f"noise_shift must be above 0, not {self.shift}")

    @property
    def log_snr(self) -> tuple[float, float]:
        """Mean and standard deviation in log-SNR."""
        return -2 * self.mean - 2 * math.log(self.shift), 2 * self.std

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        mean, std = self.log_snr
        return mean - std * normals(generators)  # lam falls where the logit of t rises

    def pdf(self, lam: Tensor) -> Tensor:
        return normal_pdf(lam, *self.log_snr)


@dataclass(frozen=True)
class Uniform:
    """`t ~ U(0, 1)`: in log-SNR a logistic law of scale 2, `p(lam) = t (1 - t) / 2` with `t = sigmoid(-lam / 2)`."""

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        t = u.clamp(2**-24, 1 - 2**-24)  # |lam| <= 33: the ends themselves would be infinite
        return (2 * (torch.log1p(-t) - torch.log(t))).float()

    def pdf(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(lam / 2) * torch.sigmoid(-lam / 2) / 2


style_friendly, logit_normal, uniform = StyleFriendly, LogitNormal, Uniform


def sd3(mean: float = 0.0, std: float = 1.0, shift: float = 3.0) -> LogitNormal:
    """SD3's training law, the paper's baseline: `logit_normal(0, 1, shift=3)`."""
    return LogitNormal(mean, std, shift)


LAWS: dict[str, tuple[Callable[..., Law], type, str]] = {
    "style-friendly": (style_friendly, StyleFriendly, "log-SNR ~ N(mean, std^2); lower mean = more noise; -6, 2"),
    "logit-normal": (logit_normal, LogitNormal, "logit(t) ~ N(mean, std^2), then shift; higher mean = more noise"),
    "sd3": (sd3, LogitNormal, "SD3's own sampler: logit-normal(0, 1) with shift 3, i.e. log-SNR ~ N(-2.2, 2^2)"),
    "uniform": (uniform, Uniform, "t ~ U(0, 1)"),
}


def law(name: str, **parameters: float | None) -> Law:
    """The law called `name`; a parameter that is None keeps the law's own value.

    Raises UserError on an unknown name (the nearest one named) and on a parameter that this law does not have.
    """
    if name not in LAWS:
        raise UserError(f"unknown noise law {name!r}: {nearest(name, list(LAWS))}")
    build, cls, _ = LAWS[name]
    given = {key: value for key, value in parameters.items() if value is not None}
    known = [field.name for field in fields(cls)]
    for key in given:
        if key not in known:
            has = ", ".join(f"noise_{k}" for k in known) or "no parameters"
            raise UserError(f"the noise law {name!r} has no noise_{key} (it has {has}): leave it out")
    return build(**given)
