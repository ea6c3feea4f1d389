"""Masked tokens: `L = mean over masked places of -log p(x | z, c)`, p = softmax of the base's logits.

z: the token ids x with the share m of the places masked, see `noise.schedule.MaskRatio`. MaskGIT (Chang et al. 2022,
arXiv 2202.04200, eq. 2), Muse, StyleDrop (arXiv 2306.00983, eq. 2). The mean is over all masked places of the batch, as
in their code, so that an item counts by its number of masked places. With a loss mask each place counts by its weight.
Label smoothing: the target is (1 - s) on the true token plus s / K on each of all K.
"""

from functools import partial

from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from impasto.data.batch import Batch
from impasto.families.base import Family
from impasto.objectives.base import Objective
from impasto.objectives.config import MaskedTokens


def masked_tokens(
    family: Family, batch: Batch, lam_B: Tensor, generators: list[Generator], label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """{"loss", "accuracy": share of the masked tokens whose logit is the largest}, in float32."""
    z = family.schedule.add_noise(batch.x, batch.eps, lam_B)
    logits = family.predict(z, lam_B, batch.cond).float()
    ids, weight = batch.x[:, 0].long(), (z != batch.x)[:, 0].float()
    hit = ((logits.detach().argmax(1) == ids) * weight).sum() / weight.sum()
    if batch.mask is not None:
        weight = weight * batch.mask[:, 0]
    loss = cross_entropy(logits, ids, reduction="none", label_smoothing=label_smoothing)
    return {"loss": (loss * weight).sum() / weight.sum().clamp(min=1e-6), "accuracy": hit}


def build(settings: MaskedTokens, family: Family) -> Objective:
    return partial(masked_tokens, label_smoothing=settings.label_smoothing)
