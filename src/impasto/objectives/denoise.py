"""The denoising objective: `L = mean w(lam) || f(z_t, lam, c) - target ||^2`, `z_t = alpha x + sigma eps`, w = 1.

With a loss mask m in [0, 1], the share of each latent position that counts: `L = mean m / mean(m) || .. ||^2` with the
mean of m taken per item, so that every item weighs the same, however little its mask leaves.

With a rectified flow the target is the velocity `eps - x` (Style-Friendly SNR sampler, arXiv 2411.14793, eq. 3).
"""

from collections.abc import Callable
from functools import partial

from torch import Generator, Tensor

from impasto.data.batch import Batch
from impasto.families.base import Family
from impasto.objectives import weighting
from impasto.objectives.base import Objective
from impasto.objectives.config import Denoise


def denoise(
    family: Family,
    batch: Batch,
    lam_B: Tensor,
    generators: list[Generator],
    weight: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The mean over items, channels and positions, in float32. weight: see `weighting`; then "mse" is without it."""
    z_t = family.schedule.add_noise(batch.x, batch.eps, lam_B)
    error = family.predict(z_t, lam_B, batch.cond).float() - family.target(batch.x, batch.eps, lam_B)
    squared = error.square()
    if batch.mask is not None:
        squared = squared * batch.mask
    if weight is None:
        return {"loss": squared.mean()}
    error_B = squared.flatten(1).mean(1)
    return {"loss": (weight(lam_B) * error_B).mean(), "mse": error_B.mean().detach()}


def build(settings: Denoise, family: Family) -> Objective:
    """Raises UserError where the loss weighting is not for this base."""
    return partial(denoise, weight=weighting.build(settings, family))
