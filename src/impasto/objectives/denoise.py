"""The denoising objective, unweighted: `L = mean || f(z_t, lam, c) - target ||^2`, `z_t = alpha x + sigma eps`.

With a loss mask m in [0, 1], the share of each latent position that counts: `L = mean m / mean(m) || .. ||^2` with the
mean of m taken per item, so that every item weighs the same, however little its mask leaves.

With a rectified flow the target is the velocity `eps - x` (Style-Friendly SNR sampler, arXiv 2411.14793, eq. 3).
"""

from torch import Generator, Tensor

from impasto.families.base import Family
from impasto.noise.schedule import mix
from impasto.objectives import Batch


def denoise(family: Family, batch: Batch, lam_B: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
    """The mean over items, channels and positions, in float32."""
    z_t = mix(family.schedule, batch.x, batch.eps, lam_B)
    error = family.predict(z_t, lam_B, batch.cond).float() - family.target(batch.x, batch.eps, lam_B)
    squared = error.square()
    return {"loss": (squared if batch.mask is None else squared * batch.mask).mean()}
