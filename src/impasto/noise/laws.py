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
from impasto.noise.schedule import Schedule, VariancePreserving


class Law(Protocol):
    """pdf, cdf and its inverse, the quantile, are those of lam; float64 where they are given it."""

    def __call__(self, generators: Sequence[Generator]) -> Tensor: ...

    def pdf(self, lam: Tensor) -> Tensor: ...

    def cdf(self, lam: Tensor) -> Tensor: ...

    def quantile(self, p: Tensor) -> Tensor: ...


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

    def cdf(self, lam: Tensor) -> Tensor:
        return torch.special.ndtr((lam - self.mean) / self.std)

    def quantile(self, p: Tensor) -> Tensor:
        return self.mean + self.std * torch.special.ndtri(p)


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

    def cdf(self, lam: Tensor) -> Tensor:
        return StyleFriendly(*self.log_snr).cdf(lam)

    def quantile(self, p: Tensor) -> Tensor:
        return StyleFriendly(*self.log_snr).quantile(p)


@dataclass(frozen=True)
class Uniform:
    """`t ~ U(0, 1)`: in log-SNR a logistic law of scale 2, `p(lam) = t (1 - t) / 2` with `t = sigmoid(-lam / 2)`."""

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        t = u.clamp(2**-24, 1 - 2**-24)  # |lam| <= 33: the ends themselves would be infinite
        return (2 * (torch.log1p(-t) - torch.log(t))).float()

    def pdf(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(lam / 2) * torch.sigmoid(-lam / 2) / 2

    def cdf(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(lam / 2)

    def quantile(self, p: Tensor) -> Tensor:
        return 2 * torch.logit(p)


@dataclass(frozen=True)
class Truncated:
    """`law` given that low <= lam <= high: `F^-1(F(low) + u (F(high) - F(low)))`, u ~ U(0, 1), F the law's cdf.

    Truncated, not clamped: a schedule that ends at log-SNR -5.4 lacks 62 % of N(-6, 2^2), and clamping would put all
    of it on one level.
    """

    law: Law
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """F(low) and F(high)."""
        low, high = self.law.cdf(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high

    @property
    def cut(self) -> float:
        """The share of the law that lies outside."""
        low, high = self.ends
        return 1 - (high - low)

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        low, high = self.ends
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        return self.law.quantile(low + u * (high - low)).clamp(self.low, self.high).float()

    def pdf(self, lam: Tensor) -> Tensor:
        return self.law.pdf(lam) / (1 - self.cut) * ((lam >= self.low) & (lam <= self.high))

    def cdf(self, lam: Tensor) -> Tensor:
        low, high = self.ends
        return ((self.law.cdf(lam) - low) / (high - low)).clamp(0, 1)

    def quantile(self, p: Tensor) -> Tensor:
        low, high = self.ends
        return self.law.quantile(low + p * (high - low))


@dataclass(frozen=True, eq=False)
class UniformTime:
    """`t ~ U(0, T - 1)` of a variance-preserving schedule: how SD1.5 and SDXL themselves were trained."""

    schedule: VariancePreserving

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        return self.quantile(torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])).float()

    def pdf(self, lam: Tensor) -> Tensor:
        levels = self.schedule.levels.to(lam)
        inside = (lam >= levels[-1]) & (lam <= levels[0])
        left = self.schedule.timestep(lam.clamp(levels[-1], levels[0])).long().clamp(max=len(levels) - 2)
        return inside / ((levels[left] - levels[left + 1]) * (len(levels) - 1))

    def cdf(self, lam: Tensor) -> Tensor:
        low, high = self.schedule.range
        return 1 - self.schedule.timestep(lam.clamp(low, high)) / (len(self.schedule.levels) - 1)

    def quantile(self, p: Tensor) -> Tensor:
        return self.schedule.log_snr((1 - p) * (len(self.schedule.levels) - 1))


def within(law: Law, schedule: Schedule) -> Law:
    """`law` on a base with this schedule: truncated to the log-SNRs that it has; uniform in its own time.

    Raises UserError when less than a thousandth of the law lies there.
    """
    low, high = schedule.range
    if isinstance(law, Uniform) and isinstance(schedule, VariancePreserving):
        return UniformTime(schedule)
    if low == -math.inf and high == math.inf:
        return law
    truncated = Truncated(law, low, high)
    if truncated.cut > 0.999:
        raise UserError(
            f"this base has noise levels of log-SNR {low:.2f} to {high:.2f}, where {law} has next to nothing: "
            "choose another noise_mean, or --noise uniform"
        )
    return truncated


style_friendly, logit_normal, uniform = StyleFriendly, LogitNormal, Uniform


def sd3(mean: float = 0.0, std: float = 1.0, shift: float = 3.0) -> LogitNormal:
    """SD3's training law, the paper's baseline: `logit_normal(0, 1, shift=3)`."""
    return LogitNormal(mean, std, shift)


LAWS: dict[str, tuple[Callable[..., Law], type, str]] = {
    "style-friendly": (style_friendly, StyleFriendly, "log-SNR ~ N(mean, std^2); lower mean = more noise; -6, 2"),
    "logit-normal": (logit_normal, LogitNormal, "logit(t) ~ N(mean, std^2), then shift; higher mean = more noise"),
    "sd3": (sd3, LogitNormal, "SD3's own sampler: logit-normal(0, 1) with shift 3, i.e. log-SNR ~ N(-2.2, 2^2)"),
    "uniform": (uniform, Uniform, "t ~ U(0, 1), in the base's own time"),
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
