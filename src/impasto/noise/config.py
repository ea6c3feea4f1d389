"""Settings of the noise laws. In all of them a level is a log-SNR; the laws themselves are in `noise.laws`."""

from dataclasses import dataclass

from impasto.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """What every law has."""

    offset: float = 0.0
    """Shift every channel of the noise as a whole, by so many standard deviations (.1 is usual); 0 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= 1:
            raise UserError(f"noise.offset must be from 0 to 1 (.1 is usual), not {self.offset}")


@dataclass(frozen=True, kw_only=True)
class StyleFriendlyNoise(NoiseSettings):
    """log-SNR ~ N(mean, std^2): the Style-Friendly SNR sampler."""

    mean: float = -6.0
    """Mean log-SNR; lower is noisier."""
    std: float = 2.0
    """Standard deviation of log-SNR."""


@dataclass(frozen=True, kw_only=True)
class TruncatedNormalNoise(NoiseSettings):
    """log-SNR ~ N(mean, std^2), truncated to [low, high] and to the base's range."""

    mean: float = -6.0
    """Mean log-SNR before truncation; lower is noisier."""
    std: float = 2.0
    """Standard deviation of log-SNR before truncation."""
    low: float | None = None
    """Lowest log-SNR; the base's own when not given."""
    high: float | None = None
    """Highest log-SNR; the base's own when not given."""


@dataclass(frozen=True, kw_only=True)
class LogitNormalNoise(NoiseSettings):
    """logit(t) ~ N(mean, std^2), then a time shift."""

    mean: float = 0.0
    """Mean of logit(t), t the share of noise; higher is noisier."""
    std: float = 1.0
    """Standard deviation of logit(t)."""
    shift: float = 1.0
    """Time shift; higher is noisier, 1 is none."""


@dataclass(frozen=True, kw_only=True)
class SD3Noise(LogitNormalNoise):
    """SD3's training law: logit-normal(0, 1) with time shift 3."""

    shift: float = 3.0
    """Time shift; higher is noisier, 1 is none."""


@dataclass(frozen=True, kw_only=True)
class CosineMaskNoise(NoiseSettings):
    """Mask ratio cos(pi u / 2), u ~ U(0, 1): masked-token models' own law."""


@dataclass(frozen=True, kw_only=True)
class UniformNoise(NoiseSettings):
    """t ~ U(0, 1) in the base's own time, then a time shift."""

    shift: float | None = None
    """Time shift, on a rectified flow only; higher is noisier; none when not given."""
