"""Direct consistency optimisation: fit the reference better than the base does, and no more once that is so.

    l_th = || f_theta(z_t, lam, c) - target ||^2,  l_ph = || f_phi(z_t, lam, c) - target ||^2,  the same z_t
    L = mean_i -log sigmoid(-beta (l_th_i - l_ph_i))

phi are the same weights with all adapters off, without gradient. Lee et al. 2024, arXiv 2402.12004; the Style-Friendly
SNR sampler, arXiv 2411.14793, eq. 7, has it as a baseline with beta = 1.

The gradient is the plain one's, item by item, times `beta sigmoid(beta (l_th - l_ph))`: beta / 2 at the start, where
L = log 2, and less for items that are learnt. With beta = 1 and errors that are means the factor stays near 1/2, and
Adam divides a constant out again: nearly the plain objective. An error that is a sum is C h w times as large, that is,
beta is. log sigmoid is taken per item; the authors' code takes it of the batch's mean, which is the same for one item.
"""

from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from impasto.adapters.lora import disabled
from impasto.data.batch import Batch
from impasto.families.base import Family
from impasto.objectives.base import Objective
from impasto.objectives.config import DCO


def dco(
    family: Family,
    batch: Batch,
    lam_B: Tensor,
    generators: list[Generator],
    beta: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> dict[str, Tensor]:
    """reduction: of an item's error over channels and positions; a loss mask weighs both errors alike.

    Parts: "mse" and "base_mse", the plain losses of theta and phi; "better", the share of items that theta fits better
    than phi; "pull", the mean of sigmoid(beta (l_th - l_ph)), 1/2 at the start and 0 where nothing is learnt any more.
    """
    z_t = family.schedule.add_noise(batch.x, batch.eps, lam_B)
    target = family.target(batch.x, batch.eps, lam_B)

    def errors(prediction: Tensor) -> Tensor:
        squared = (prediction.float() - target).square()
        return (squared if batch.mask is None else squared * batch.mask).flatten(1)

    with torch.no_grad(), disabled(family.denoiser):
        phi = errors(family.predict(z_t, lam_B, batch.cond if batch.base_cond is None else batch.base_cond))
    theta = errors(family.predict(z_t, lam_B, batch.cond))
    reduced = [error.mean(1) if reduction == "mean" else error.sum(1) for error in (theta, phi)]
    margin = beta * (reduced[0] - reduced[1])
    return {
        "loss": softplus(margin).mean(),  # -log sigmoid(-m)
        "mse": theta.mean().detach(),
        "base_mse": phi.mean(),
        "better": (margin < 0).float().mean().detach(),
        "pull": margin.sigmoid().mean().detach(),
    }


def build(settings: DCO, family: Family) -> Objective:
    return partial(dco, beta=settings.beta, reduction=settings.reduction)
