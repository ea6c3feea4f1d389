"""Noise laws: the distributions from which training draws its noise levels.

A law is a distribution of the log-SNR `lam` (float32; smaller is noisier): `law(generators)` draws one level per
generator, `law.pdf(lam)` is its density. Sign conventions differ between tools; here the mean of `style-friendly` is
a *log-SNR* (lower = more noise) and the mean of `logit-normal` the logit of the *noise share* t (higher = more noise).
`noise.NOISE_LAWS` maps the names of recipes to constructors.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from impasto.errors import UserError
from impasto.noise import NOISE_LAWS
from impasto.noise.config import NoiseSettings
from impasto.noise.schedule import Schedule, VariancePreserving
from impasto.registry import look_up, name_of


class Law(Protocol):
    """A distribution of lam. pdf, cdf and quantile (the inverse cdf) keep the dtype of their argument."""

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        """One level per generator, (n,), float32."""
        ...

    def pdf(self, lam: Tensor) -> Tensor:
        """The density at lam."""
        ...

    def cdf(self, lam: Tensor) -> Tensor:
        """The share of levels below lam."""
        ...

    def quantile(self, p: Tensor) -> Tensor:
        """The level below which a share p lies."""
        ...


def normals(generators: Sequence[Generator]) -> Tensor:
    """One standard normal per generator, shape (n,), float32."""
    return torch.cat([torch.randn(1, generator=g) for g in generators])


def normal_pdf(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def check_normal(mean: float, std: float) -> None:
    if not math.isfinite(mean):
        raise UserError(f"noise.mean must be a finite number, not {mean}")
    if not (std > 0 and math.isfinite(std)):
        raise UserError(f"noise.std must be above 0, not {std}")


def check_shift(shift: float) -> None:
    if not (shift > 0 and math.isfinite(shift)):
        raise UserError(f"noise.shift must be above 0, not {shift}")


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

    In log-SNR that is `lam ~ N(-2 mean - 2 log shift, (2 std)^2)`. t is the noise share, so a higher mean or shift is
    noisier. (0, 1, shift 3) is SD3's own sampler: N(-2.197, 2^2).
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_normal(self.mean, self.std)
        check_shift(self.shift)

    @property
    def log_snr(self) -> tuple[float, float]:
        """(mean, std) in log-SNR."""
        return -2 * self.mean - 2 * math.log(self.shift), 2 * self.std

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        mean, std = self.log_snr
        return mean - std * normals(generators)  # minus: lam = -2 logit(t)

    def pdf(self, lam: Tensor) -> Tensor:
        return normal_pdf(lam, *self.log_snr)

    def cdf(self, lam: Tensor) -> Tensor:
        return StyleFriendly(*self.log_snr).cdf(lam)

    def quantile(self, p: Tensor) -> Tensor:
        return StyleFriendly(*self.log_snr).quantile(p)


@dataclass(frozen=True)
class Uniform:
    """`u ~ U(0, 1)`, then `t = shift u / (1 + (shift - 1) u)`: in log-SNR a logistic law of scale 2 and mean -2 log
    shift, `p(lam) = u (1 - u) / 2` with `u = sigmoid(-lam / 2 - log shift)`. A higher shift is noisier; 1: no shift."""

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    @property
    def shift_offset(self) -> float:
        """The log-SNR that the shift adds."""
        return -2 * math.log(self.shift)

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        u = u.clamp(2**-24, 1 - 2**-24)  # keeps |lam| <= 33, finite
        return (2 * (torch.log1p(-u) - torch.log(u)) + self.shift_offset).float()

    def pdf(self, lam: Tensor) -> Tensor:
        half = (lam - self.shift_offset) / 2
        return torch.sigmoid(half) * torch.sigmoid(-half) / 2

    def cdf(self, lam: Tensor) -> Tensor:
        return torch.sigmoid((lam - self.shift_offset) / 2)

    def quantile(self, p: Tensor) -> Tensor:
        return 2 * torch.logit(p) + self.shift_offset


@dataclass(frozen=True)
class Truncated:
    """`law` conditioned on low <= lam <= high: `F^-1(F(low) + u (F(high) - F(low)))`, u ~ U(0, 1), F the law's cdf.

    Truncated, not clamped: 62 % of N(-6, 2^2) lies beyond the end of a schedule at log-SNR -5.4, and clamping would put
    all of it on that one level. low and high may be infinite.
    """

    law: Law
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"noise.low must be below noise.high, not {self.low} and {self.high}")
        if self.cut > 1 - 1e-6:
            raise UserError(
                f"{self.law} has nothing between log-SNR {self.low:.2f} and {self.high:.2f}: choose another noise.mean"
            )

    @property
    def cdf_bounds(self) -> tuple[float, float]:
        """F(low) and F(high)."""
        low, high = self.law.cdf(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high

    @property
    def cut(self) -> float:
        """The share of `law` outside [low, high]."""
        low, high = self.cdf_bounds
        return 1 - (high - low)

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        low, high = self.cdf_bounds
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        return self.law.quantile(low + u * (high - low)).clamp(self.low, self.high).float()

    def pdf(self, lam: Tensor) -> Tensor:
        return self.law.pdf(lam) / (1 - self.cut) * ((lam >= self.low) & (lam <= self.high))

    def cdf(self, lam: Tensor) -> Tensor:
        low, high = self.cdf_bounds
        return ((self.law.cdf(lam) - low) / (high - low)).clamp(0, 1)

    def quantile(self, p: Tensor) -> Tensor:
        low, high = self.cdf_bounds
        return self.law.quantile(low + p * (high - low))


@dataclass(frozen=True)
class CosineMask:
    """`m = cos(pi u / 2)`, u ~ U(0, 1), with `lam = 2 log((1 - m) / m)`: MaskGIT's, Muse's and StyleDrop's mask ratios.

    P(m <= x) = 1 - (2 / pi) arccos x, hence of lam, which falls in m, F(lam) = (2 / pi) arccos m(lam); the density is
    p(lam) = m (1 - m) / (pi sqrt(1 - m^2)). The mean of m is 2 / pi.
    """

    def __call__(self, generators: Sequence[Generator]) -> Tensor:
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        return self.quantile(u.clamp(2**-24, 1 - 2**-24)).float()

    def pdf(self, lam: Tensor) -> Tensor:
        m = torch.sigmoid(-lam / 2)
        return m * torch.sigmoid(lam / 2) / (math.pi * (1 - m * m).sqrt())

    def cdf(self, lam: Tensor) -> Tensor:
        return torch.arccos(torch.sigmoid(-lam / 2)) * (2 / math.pi)

    def quantile(self, p: Tensor) -> Tensor:
        """`1 - m = 2 sin^2(pi p / 4)`, which keeps its precision where m is near 1."""
        angle = p * (math.pi / 2)
        return 2 * (torch.log(2 * torch.sin(angle / 2) ** 2) - torch.log(torch.cos(angle)))


@dataclass(frozen=True, eq=False)
class UniformTime:
    """`t ~ U(0, T - 1)` of a variance-preserving schedule: the pretraining law of SD1.5 and SDXL."""

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


FLOW_END = 2 * math.log(999)  # |log-SNR| at t = .001 and .999, the first and last of 1000 steps of a rectified flow
NEARLY_ALL = 0.99


def truncate_to_schedule(law: Law, schedule: Schedule) -> Law:
    """`law` truncated to the log-SNR range of `schedule`; a uniform law becomes uniform in the schedule's own time.

    Raises UserError when nearly all of the law lies beyond one end of the schedule, and when a truncated law has
    neither bound.
    """
    low, high = schedule.range
    if isinstance(law, Uniform) and isinstance(schedule, VariancePreserving):
        if law.shift != 1:
            raise UserError("a noise.shift of the uniform law is for rectified flows (SD3, FLUX): leave it out")
        return UniformTime(schedule)
    check_ends(law, max(low, -FLOW_END), min(high, FLOW_END))
    if isinstance(law, Truncated):
        law, low, high = law.law, max(low, law.low), min(high, law.high)
        if low == -math.inf and high == math.inf:
            raise UserError(
                "this base has every noise level, so truncated-normal needs noise.low or noise.high "
                "(without them it is style-friendly)"
            )
    return law if low == -math.inf and high == math.inf else Truncated(law, low, high)


def check_ends(law: Law, low: float, high: float) -> None:
    """Raise UserError with the share when nearly all of `law` lies below `low` or above `high`."""
    below, above = law.cdf(torch.tensor([low, high], dtype=torch.float64)).tolist()
    for share, side, end in ((below, "below", low), (1 - above, "above", high)):
        if share > NEARLY_ALL:
            what = "pure noise" if end < 0 else "hardly any noise"
            other = "another noise.mean (style-friendly has -6), or --noise uniform"
            raise UserError(
                f"{share:.1%} of the noise levels lie {side} log-SNR {end:.2f}, where this base has {what} at the end "
                f"of its schedule: choose {'another noise.shift' if isinstance(law, Uniform) else other}"
            )


def truncated_normal(mean: float = -6.0, std: float = 2.0, low: float = -math.inf, high: float = math.inf) -> Truncated:
    """`lam ~ N(mean, std^2)` conditioned on low <= lam <= high; `truncate_to_schedule` adds the base's range."""
    return Truncated(StyleFriendly(mean, std), low, high)


def sd3(mean: float = 0.0, std: float = 1.0, shift: float = 3.0) -> LogitNormal:
    """SD3's training law, the paper's baseline: `logit_normal(0, 1, shift=3)`."""
    return LogitNormal(mean, std, shift)


PARAMETERS = ("mean", "std", "shift", "low", "high")
"""Parameters of the laws; the flat recipe keys are these with the prefix noise_."""


def law_from_recipe(settings: Mapping[str, Any]) -> Law:
    """The law of the flat recipe keys noise, noise_mean and so on; a key may be None or missing."""
    return build_law(settings["noise"], **{key: settings.get(f"noise_{key}") for key in PARAMETERS})


def law_from_settings(settings: NoiseSettings) -> Law:
    """The law of a settings object. Raises UserError when its parameters are invalid."""
    given = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "offset"}
    return build_law(name_of(NOISE_LAWS, settings), **given)


def build_law(name: str, **parameters: float | None) -> Law:
    """The law called `name`; parameters that are None keep the law's defaults.

    Raises UserError on an unknown name (naming the nearest) and on a parameter that the law does not have.
    """
    build = look_up(NOISE_LAWS, name, "noise law").builder
    given = {key: value for key, value in parameters.items() if value is not None}
    known = list(inspect.signature(build).parameters)
    for key in given:
        if key not in known:
            has = ", ".join(f"noise.{k}" for k in known) or "no parameters"
            raise UserError(f"the noise law {name!r} has no noise.{key} (it has {has}): leave it out")
    return build(**given)


PUBLISHED_POSITIONS = 128 * 128  # latent positions of a 1024 px image, for which the published laws were tuned


def noise_law(config: Any) -> Law:
    """The law of a TrainConfig."""
    return law_from_settings(config.noise)
