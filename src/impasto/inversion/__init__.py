"""Inversion: from an image's latents to the noise from which its base generates it, with all levels between.

`ddim.py` is for variance-preserving schedules, `flow.py` for rectified flows; `invert` chooses by the family's
schedule.
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

METHODS: dict[type, ModuleType] = {VariancePreserving: ddim, RectifiedFlow: flow}
"""By schedule class: modules with `levels`, `step` and `direction`."""


@dataclass(frozen=True)
class Trajectory:
    """latents (n, C, h, w) from the image to noise, and their log_snr (n,), falling."""

    latents: Tensor
    log_snr: Tensor

    @property
    def noise(self) -> Tensor:
        """(1, C, h, w): the last latents, where sampling starts."""
        return self.latents[-1:]

    def at(self, lam: Tensor) -> Tensor:
        """(1, C, h, w) at the level nearest to the scalar `lam`, by distance in a flow's noise share."""
        distance = torch.sigmoid(-self.log_snr / 2) - torch.sigmoid(-lam.detach().cpu().double() / 2)
        return self.latents[distance.abs().argmin()][None]


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
    """Invert latents (1, C, h, w) of `family.encode_image`, conditioned on `condition` (one row).

    steps: of the schedule's inversion grid, `ddim.levels` or `flow.levels`. levels: log-SNRs to pass through instead,
    in any order. negative, guidance: classifier-free guidance; by default conditional only.
    refine: fixed-point iterations per step, each repeating the step with the prediction at its own result. The fixed
    point is the exact inverse of the sampler's step (Pan et al. 2023, arXiv 2309.04907; Garibi et al. 2024, arXiv
    2403.14602). Each costs as much as the inversion itself.
    Raises UserError for a schedule without an inversion, and for invalid steps or levels.
    """
    method = METHODS.get(type(family.schedule))
    if method is None:
        raise UserError(f"a base with a {type(family.schedule).__name__} schedule cannot be inverted")
    height, width = latents.shape[-2:]
    path = method.levels(family, steps, (height, width)) if levels is None else path_through(family, levels)

    @torch.no_grad()
    def direction(z: Tensor, lam: Tensor) -> Tensor:
        lam_B = lam.expand(len(z)).to(z.device, z.dtype)
        prediction = family.predict(z, lam_B.float(), condition).to(z.dtype)
        if negative is not None:
            without = family.predict(z, lam_B.float(), negative).to(z.dtype)
            prediction = without + guidance * (prediction - without)
        return method.direction(family, z, lam_B, prediction)

    trajectory = integrate(method.step, direction, latents.to(family.device), path, refine)
    return Trajectory(torch.cat(trajectory), path)


def path_through(family: Family, levels: Tensor) -> Tensor:
    """The cleanest level of the schedule and then `levels`, without repetitions, falling, float64."""
    noisiest, cleanest = family.schedule.range
    if not len(levels) or levels.isnan().any() or levels.min() < noisiest - 1e-4 or levels.max() > cleanest + 1e-4:
        raise UserError(f"an inversion cannot pass through {levels.tolist()}: this base has {noisiest} to {cleanest}")
    start = torch.tensor([cleanest], dtype=torch.float64)
    return torch.cat([start, levels.double().cpu().clamp(noisiest, cleanest)]).unique().flip(0)


def integrate(
    step: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    direction: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    path: Tensor,
    refine: int,
) -> list[Tensor]:
    """The latents at each level of `path`: `z' = step(z, direction(z, lam'), lam, lam')`; refine: see `invert`."""
    trajectory = [z]
    for lam, lam_next in pairwise(path):
        z_next = z
        for _ in range(1 + refine):
            z_next = step(z, direction(z_next, lam_next), lam, lam_next)
        z = z_next
        trajectory.append(z)
    return trajectory
