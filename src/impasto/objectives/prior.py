"""Prior preservation, by default with the base's own pictures and predictions: nothing has to be collected.

    L = L_objective + w mean || f_theta(z'_t, lam, c') - f_phi(z'_t, lam, c') ||^2

c' are captions from the base's own vocabulary, x' what the base phi itself drew for them (once, cached), and
z'_t = alpha x' + sigma eps' at the levels that the step trains at; f_phi are the same weights with the adapter off.
DreamBooth's prior preservation (Ruiz et al. 2022, arXiv 2208.12242, eq. 2) with the prediction instead of the noise as
target, as ai-toolkit's output preservation has it: no noise of its own, and exactly zero as long as nothing has moved.

With the target "data" f_phi is replaced by the regression target of (x', eps', lam), which is eq. 2 itself: no adapter
is switched off. x' may be given images of the class.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from impasto.adapters.lora import disabled
from impasto.data.batch import Batch
from impasto.families.base import Condition, Family
from impasto.objectives.base import Objective


@dataclass(frozen=True)
class Prior:
    """`objective` plus `weight` times the distance from the base, on `count` of K pictures x_KCHW per forward pass.

    captions: per picture the row of `cond`, the same one where it is None. target: as in `PriorConfig`.
    """

    objective: Objective
    weight: float
    count: int
    x: Tensor
    cond: Condition
    captions: Tensor | None = None
    target: Literal["prediction", "data"] = "prediction"

    def __call__(self, family: Family, batch: Batch, lam_B: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        """{"loss", "fit": of the objective, "prior": before the weight}. Draws (picture, eps') from the first items'
        generators, after what the batch took from them.

        Of a part of a batch "prior" is scaled so that its mean over items is the whole batch's; 0 behind the first.
        """
        parts = self.objective(family, batch, lam_B, generators)
        first, whole = batch.part or (0, len(generators))
        n = max(0, min(self.count - first, len(generators)))
        if not n:
            return {"loss": parts["loss"], "fit": parts["loss"].detach(), "prior": torch.zeros_like(parts["loss"])}
        scale = n * whole / (len(generators) * min(self.count, whole))
        own, lam = generators[:n], lam_B[:n]
        index = torch.cat([torch.randint(len(self.x), (1,), generator=g) for g in own]).to(self.x.device)
        eps = torch.stack([torch.randn(self.x.shape[1:], generator=g) for g in own]).to(self.x.device)
        captions = index if self.captions is None else self.captions[index]
        cond = {name: rows[captions] for name, rows in self.cond.items()}
        z_t = family.schedule.add_noise(self.x[index], eps, lam)
        if self.target == "data":
            target = family.target(self.x[index], eps, lam)
        else:
            with torch.no_grad(), disabled(family.denoiser):
                target = family.predict(z_t, lam, cond).float()
        prior = scale * (family.predict(z_t, lam, cond).float() - target).square().mean()
        return {"loss": parts["loss"] + self.weight * prior, "fit": parts["loss"].detach(), "prior": prior.detach()}
