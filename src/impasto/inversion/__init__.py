"""Inversion: from a picture's latents to the noise that its base would draw it from, and every level between.

`ddim.py` is for variance-preserving schedules, `flow.py` for rectified flows; `invert` picks by the family's schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.inversion import ddim, flow
from impasto.noise.schedule import RectifiedFlow, VariancePreserving

KINDS: dict[type, ModuleType] = {VariancePreserving: ddim, RectifiedFlow: flow}
"""Each with `levels`, `step` and `direction`."""


@dataclass(frozen=True)
class Trajectory:
    """A picture on its way to noise: latents (n, C, h, w), the picture's own first, and their log_snr (n,), falling."""

    latents: Tensor
    log_snr: Tensor

    @property
    def noise(self) -> Tensor:
        """(1, C, h, w): where sampling starts."""
        return self.latents[-1:]

    def at(self, lam: Tensor) -> Tensor:
        """(1, C, h, w) at the level nearest to the scalar `lam`, near in a flow's noise share."""
        away = torch.sigmoid(-self.log_snr / 2) - torch.sigmoid(-lam.detach().cpu().double() / 2)
        return self.latents[away.abs().argmin()][None]


def invert(
    family: Family,
    latents: Tensor,
    condition: Condition,
    steps: int = 50,
    *,
    levels: Tensor | None = None,
    negative: Condition | None = None,
    guidance: float = 1.0,
    refine: int = 0,
) -> Trajectory:
    """Walk latents (1, C, h, w) of `family.encode_image` towards the noise, told `condition` (one row).

    steps: of the schedule's own inversion grid, `ddim.levels` or `flow.levels`. levels: log-SNRs to pass through
    instead, in any order. negative, guidance: classifier-free guidance; by default none, conditional only.
    refine: times that each step is taken again from its own result. The model then says more nearly what it will say
    when the sampler comes back: the fixed point is the exact inverse of the sampler's step (Pan et al. 2023,
    arXiv 2309.04907; Garibi et al. 2024, arXiv 2403.14602). Each costs as much as the inversion itself.
    Raises UserError for a schedule without an inversion, and for steps or levels that it does not have.
    """
    kind = KINDS.get(type(family.schedule))
    if kind is None:
        raise UserError(f"a base with a {type(family.schedule).__name__} schedule cannot be inverted")
    height, width = latents.shape[-2:]
    path = kind.levels(family, steps, (height, width)) if levels is None else through(family, levels)

    @torch.no_grad()
    def direction(z: Tensor, lam: Tensor) -> Tensor:
        lam_B = lam.expand(len(z)).to(z.device, z.dtype)
        said = family.predict(z, lam_B.float(), condition).to(z.dtype)
        if negative is not None:
            without = family.predict(z, lam_B.float(), negative).to(z.dtype)
            said = without + guidance * (said - without)
        return kind.direction(family, z, lam_B, said)

    walked = walk(kind.step, direction, latents.to(family.device), path, refine)
    return Trajectory(torch.cat(walked), path)


def through(family: Family, levels: Tensor) -> Tensor:
    """From the cleanest level of the schedule through `levels`, each once, falling, float64."""
    noisiest, cleanest = family.schedule.range
    if not len(levels) or levels.isnan().any() or levels.min() < noisiest - 1e-4 or levels.max() > cleanest + 1e-4:
        raise UserError(f"an inversion cannot pass through {levels.tolist()}: this base has {noisiest} to {cleanest}")
    start = torch.tensor([cleanest], dtype=torch.float64)
    return torch.cat([start, levels.double().cpu().clamp(noisiest, cleanest)]).unique().flip(0)


def walk(
    step: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    direction: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    path: Tensor,
    refine: int,
) -> list[Tensor]:
    """The latents at each level of `path`: `z' = step(z, direction(z, lam'), lam, lam')`, refined as `invert` says."""
    walked = [z]
    for lam, lam_next in pairwise(path):
        at = z
        for _ in range(1 + refine):
            at = step(z, direction(at, lam_next), lam, lam_next)
        z = at
        walked.append(z)
    return walked
