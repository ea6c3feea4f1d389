"""Noise levels, in one unit: the log-SNR `lam = log(alpha^2 / sigma^2)`, float32. More noise is a smaller `lam`.

NOISE_LAWS is the table of the laws that training can draw levels from. A row's builder takes the settings' fields by
name, those that are None left out, and returns a `noise.laws.Law`.
"""

from impasto.registry import Entry

NOISE_LAWS: dict[str, Entry] = {
    "style-friendly": Entry(
        "impasto.noise.config:StyleFriendlyNoise",
        "impasto.noise.laws:StyleFriendly",
        "log-SNR ~ N(mean, std^2); lower mean = more noise; -6, 2",
    ),
    "truncated-normal": Entry(
        "impasto.noise.config:TruncatedNormalNoise",
        "impasto.noise.laws:truncated_normal",
        "the same, truncated to [low, high] and to the base's range",
    ),
    "logit-normal": Entry(
        "impasto.noise.config:LogitNormalNoise",
        "impasto.noise.laws:LogitNormal",
        "logit(t) ~ N(mean, std^2), then shift; higher mean = more noise",
    ),
    "sd3": Entry(
        "impasto.noise.config:SD3Noise",
        "impasto.noise.laws:sd3",
        "SD3's own sampler: logit-normal(0, 1) with shift 3, i.e. log-SNR ~ N(-2.2, 2^2)",
    ),
    "uniform": Entry(
        "impasto.noise.config:UniformNoise",
        "impasto.noise.laws:Uniform",
        "t ~ U(0, 1), in the base's own time; then shift, on a rectified flow",
    ),
    "cosine-mask": Entry(
        "impasto.noise.config:CosineMaskNoise",
        "impasto.noise.laws:CosineMask",
        "t = cos(pi u / 2), u ~ U(0, 1): mask ratios of Muse and StyleDrop",
    ),
}
