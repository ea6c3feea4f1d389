"""Noise laws: how often a model is trained at which noise level.

A law is a distribution of the log-SNR `lam` (float32; smaller is noisier): `law(generators)` draws one level per
generator, `law.pdf(lam)` is its density. Every parameter has one sign here, whatever other tools do with theirs:
`style_friendly` takes the mean *log-SNR* (lower = more noise), `logit_normal` the mean logit of the *noise share*
t (higher = more noise). Both say so in LAWS, the one table in which a name is looked up.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


def check_normal(mean: float, std: float) -> None:
    if not math.isfinite(mean):
        raise UserError(f"noise_mean must be a finite number, not {mean}")
    if not (std > 0 and math.isfinite(std)):
        raise UserError(f"noise_std must be above 0, not {std}")


def check_shift(shift: float) -> None:
    if not (shift > 0 and math.isfinite(shift)):
        raise UserError(f"noise_shift must be above 0, not {shift}")


@dataclass(frozen=True)
class StyleFriendly:
    """`lam ~ N(mean, std^2)`, no time shift. Choi et al., "Style-Friendly SNR Sampler", arXiv 2411.14793, eq. 6.

    mean: log-SNR, -6 in the paper (t has median .953); lower is noisier. std: 2 (SD3.5) or 3 (FLUX) in the paper.
    """

    mean: float = -6.0
    std: float = 2.0

    def __post_init__(self) -> None:
        check_normal(self.mean, self.std)

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
        check_normal(self.mean, self.std)
        check_shift(self.shift)

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
    """`u ~ U(0, 1)`, then `t = shift u / (1 + (shift - 1) u)`: in log-SNR a logistic law of scale 2 and mean -2 log
    shift, `p(lam) = u (1 - u) / 2` with `u = sigmoid(-lam / 2 - log shift)`. A higher shift is noisier; 1 is none."""

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    @property
    def moved(self) -> float:
        """By how much the shift moves a log-SNR."""
        return -2 * math.log(self.shift)

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        u = u.clamp(2**-24, 1 - 2**-24)  # |lam| <= 33: the ends themselves would be infinite
        return (2 * (torch.log1p(-u) - torch.log(u)) + self.moved).float()

    def pdf(self, lam: Tensor) -> Tensor:
        half = (lam - self.moved) / 2
        return torch.sigmoid(half) * torch.sigmoid(-half) / 2

    def cdf(self, lam: Tensor) -> Tensor:
        return torch.sigmoid((lam - self.moved) / 2)

    def quantile(self, p: Tensor) -> Tensor:
        return 2 * torch.logit(p) + self.moved


@dataclass(frozen=True)
class Truncated:
    """`law` given that low <= lam <= high: `F^-1(F(low) + u (F(high) - F(low)))`, u ~ U(0, 1), F the law's cdf.

    Truncated, not clamped: a schedule that ends at log-SNR -5.4 lacks 62 % of N(-6, 2^2), and clamping would put all
    of it on one level. low and high may be infinite.
    """

    law: Law
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"noise_low must be below noise_high, not {self.low} and {self.high}")
        if self.cut > 1 - 1e-6:
            raise UserError(
                f"{self.law} has nothing between log-SNR {self.low:.2f} and {self.high:.2f}: choose another noise_mean"
            )

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


FLOW_END = 2 * math.log(999)  # |log-SNR| at t = .001 and .999, a rectified flow's last of 1000 steps: picture or noise
ALL = 0.99  # a share of levels that counts as all of them


def within(law: Law, schedule: Schedule) -> Law:
    """`law` on a base with this schedule: truncated to the log-SNRs that it has; uniform in its own time.

    Raises UserError when nearly all of the law lies beyond one end of the schedule, and when a truncated law has no
    end to be truncated at.
    """
    low, high = schedule.range
    if isinstance(law, Uniform) and isinstance(schedule, VariancePreserving):
        if law.shift != 1:
            raise UserError("a noise_shift of the uniform law is for rectified flows (SD3, FLUX): leave it out")
        return UniformTime(schedule)
    check_ends(law, max(low, -FLOW_END), min(high, FLOW_END))
    if isinstance(law, Truncated):
        law, low, high = law.law, max(low, law.low), min(high, law.high)
        if low == -math.inf and high == math.inf:
            raise UserError(
                "this base has every noise level, so truncated-normal needs noise_low or noise_high "
                "(without them it is style-friendly)"
            )
    return law if low == -math.inf and high == math.inf else Truncated(law, low, high)


def check_ends(law: Law, low: float, high: float) -> None:
    """Raise UserError when nearly all of `law` lies below `low` or above `high`, the share said."""
    below, above = law.cdf(torch.tensor([low, high], dtype=torch.float64)).tolist()
    for share, side, end in ((below, "below", low), (1 - above, "above", high)):
        if share > ALL:
            what = "pure noise" if end < 0 else "hardly any noise"
            other = "another noise_mean (style-friendly has -6), or --noise uniform"
            raise UserError(
                f"{share:.1%} of the noise levels lie {side} log-SNR {end:.2f}, where this base has {what} at the end "
                f"of its schedule: choose {'another noise_shift' if isinstance(law, Uniform) else other}"
            )


style_friendly, logit_normal, uniform = StyleFriendly, LogitNormal, Uniform


def truncated_normal(mean: float = -6.0, std: float = 2.0, low: float = -math.inf, high: float = math.inf) -> Truncated:
    """`lam ~ N(mean, std^2)` given that low <= lam <= high; `within` adds a base's own ends, where they are closer."""
    return Truncated(StyleFriendly(mean, std), low, high)


def sd3(mean: float = 0.0, std: float = 1.0, shift: float = 3.0) -> LogitNormal:
    """SD3's training law, the paper's baseline: `logit_normal(0, 1, shift=3)`."""
    return LogitNormal(mean, std, shift)


LAWS: dict[str, tuple[Callable[..., Law], str]] = {
    "style-friendly": (style_friendly, "log-SNR ~ N(mean, std^2); lower mean = more noise; -6, 2"),
    "truncated-normal": (truncated_normal, "the same from noise_low to noise_high, and within the base's own levels"),
    "logit-normal": (logit_normal, "logit(t) ~ N(mean, std^2), then shift; higher mean = more noise"),
    "sd3": (sd3, "SD3's own sampler: logit-normal(0, 1) with shift 3, i.e. log-SNR ~ N(-2.2, 2^2)"),
    "uniform": (uniform, "t ~ U(0, 1), in the base's own time; then shift, on a rectified flow"),
}
PARAMETERS = ("mean", "std", "shift", "low", "high")
"""What laws have; a recipe's keys are these with noise_ before them."""


def of(settings: Mapping[str, Any]) -> Law:
    """The law that a recipe's keys name: noise, noise_mean and so on; a key may be None or missing."""
    return law(settings["noise"], **{key: settings.get(f"noise_{key}") for key in PARAMETERS})


def law(name: str, **parameters: float | None) -> Law:
    """The law called `name`; a parameter that is None keeps the law's own value.

    Raises UserError on an unknown name (the nearest one named) and on a parameter that this law does not have.
    """
    if name not in LAWS:
        raise UserError(f"unknown noise law {name!r}: {nearest(name, list(LAWS))}")
    build, _ = LAWS[name]
    given = {key: value for key, value in parameters.items() if value is not None}
    known = list(inspect.signature(build).parameters)
    for key in given:
        if key not in known:
            has = ", ".join(f"noise_{k}" for k in known) or "no parameters"
            raise UserError(f"the noise law {name!r} has no noise_{key} (it has {has}): leave it out")
    return build(**given)


PUBLISHED_POSITIONS = 128 * 128  # latents of a 1024 px picture: where the published laws were found


def noise_law(config: Any) -> Law:
    """The law that a TrainConfig names. Raises UserError when it cannot be."""
    return of(vars(config))
