"""Inversion: from an image's latents to the noise from which its base generates it, and deterministic sampling back.

`ddim.py` is for variance-preserving schedules, `flow.py` for rectified flows; `invert` and `sample` choose by the
family's schedule.
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
"""By schedule class: modules with `levels`, `step`, `direction` and `REFINE`."""
TIMESTEPS = 1000  # a rectified flow's noise share times this


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
    until: float | None = None,
    negative: Condition | None = None,
    guidance: float = 1.0,
    refine: int = 0,
) -> Trajectory:
    """Bring latents (1, C, h, w) of `family.encode_image` to noise, conditioned on `condition` (one row).

    steps: of the schedule's own inversion grid, `ddim.levels` or `flow.levels`. levels: log-SNRs to pass through
    instead, in any order. until: the terminal log-SNR: the grid ends at its noisiest level that is not noisier; None
    for the whole grid. negative, guidance: classifier-free guidance; by default none, conditional only.
    refine: fixed-point iterations of each step, z' = step(z, direction(z', lam')) from the last z' (Pan et al. 2023,
    arXiv 2309.04907; Garibi et al. 2024, arXiv 2403.14602): its limit is the exact inverse of the sampler's step. Each
    costs as much as the inversion itself.
    Raises UserError for a schedule without an inversion, and for steps or levels that it does not have.
    """
    kind = kind_of(family)
    height, width = latents.shape[-2:]
    path = kind.levels(family, steps, (height, width)) if levels is None else path_through(family, levels)
    if until is not None:
        path = up_to(family, path, until)
    predicted = directions(family, condition, negative, guidance)
    walked = integrate(kind.step, predicted, latents.to(family.device), path, refine)
    return Trajectory(torch.cat(walked), path)


def sample(
    family: Family,
    z: Tensor,
    levels: Tensor,
    condition: Condition,
    *,
    negative: Condition | None = None,
    guidance: float = 1.0,
    batch: int | None = None,
) -> Tensor:
    """Latents (B, C, h, w) at the cleanest of `levels`, by deterministic DDIM or Euler steps from z at the noisiest.

    z: (1, C, h, w) for all rows, or (B, C, h, w). levels: log-SNRs in any order; with `Trajectory.log_snr` the sampling
    undoes the inversion from its terminal level. condition: B rows, or one row for all; negative: the same, for
    classifier-free guidance. guidance: its scale, or the input of a model that takes the scale as one.
    batch: rows of one call of the denoiser (all by default): speed and memory only.

    From the last level of `ddim.levels` it is diffusers' DDIM with the scheduler of `ddim.scheduler`, from that of
    `flow.levels` the pipeline's own Euler sampler, both called with `latents=z`.
    """
    n = max(len(z), *(len(rows) for rows in condition.values())) if condition else len(z)
    z, condition = z.to(family.device).expand(n, -1, -1, -1), expand(condition, n)
    negative = negative if negative is None else expand(negative, n)
    step, path = kind_of(family).step, levels.double().cpu().sort().values

    def rows(part: slice) -> Tensor:
        predicted = directions(family, take(condition, part), negative and take(negative, part), guidance)
        x = z[part]
        for lam, lam_next in pairwise(path):
            x = step(x, predicted(x, lam), lam, lam_next)
        return x

    return torch.cat([rows(slice(i, i + (batch or n))) for i in range(0, n, batch or n)])


def kind_of(family: Family) -> ModuleType:
    """The module of the family's schedule. Raises UserError where there is none."""
    kind = METHODS.get(type(family.schedule))
    if kind is None:
        what = "of masked tokens" if family.schedule.masked else f"with a {type(family.schedule).__name__} schedule"
        raise UserError(f"a base {what} cannot be inverted")
    return kind


def log_snr_of(family: Family, timestep: float) -> float:
    """The log-SNR of a timestep of 0 to 1000. Raises UserError outside of the base's own."""
    schedule = family.schedule
    last = len(schedule.levels) - 1 if isinstance(schedule, VariancePreserving) else TIMESTEPS
    if not 0 < timestep <= last:
        raise UserError(f"until must be a timestep above 0 and up to {last} for this base, not {timestep:g}")
    own = schedule if isinstance(schedule, VariancePreserving) else RectifiedFlow(TIMESTEPS)
    return own.log_snr(torch.tensor(timestep, dtype=torch.float64)).item()


def timestep_of(family: Family, level: Tensor) -> float:
    """The inverse of `log_snr_of`."""
    own = family.schedule if isinstance(family.schedule, VariancePreserving) else RectifiedFlow(TIMESTEPS)
    return own.timestep(level).item()


def directions(
    family: Family, condition: Condition, negative: Condition | None, guidance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """(z (B, C, h, w), scalar lam) -> the prediction that `step` takes, under classifier-free guidance.

    The rows of the negative prompt come before those of the prompt in one call of the denoiser, as in diffusers.
    """
    kind, guided = kind_of(family), family.guided_by == "negative" and guidance != 1
    if guided and negative is None:
        raise ValueError(f"guidance {guidance:g} needs the condition of a negative prompt")

    @torch.no_grad()
    def predicted(z: Tensor, lam: Tensor) -> Tensor:
        n = len(z)
        cond = expand(condition, n)
        if family.guided_by == "embedding":
            cond = cond | {"guidance": torch.full((n,), guidance, device=z.device)}
        if guided and negative is not None:
            cond = {name: torch.cat([expand(negative, n)[name], rows]) for name, rows in cond.items()}
        z_B = torch.cat([z, z]) if guided else z
        lam_B = lam.expand(len(z_B)).to(z.device, z.dtype)
        prediction = family.predict(z_B, lam_B.float(), cond).to(z.dtype)
        if guided:
            without, prediction = prediction.chunk(2)
            prediction = without + guidance * (prediction - without)
        return kind.direction(family, z, lam_B[:n], prediction)

    return predicted


def expand(condition: Condition, n: int) -> Condition:
    """The condition in n rows; one row serves all."""
    return {name: rows.expand(n, *rows.shape[1:]) if len(rows) == 1 else rows for name, rows in condition.items()}


def take(condition: Condition, part: slice) -> Condition:
    """Some of its rows."""
    return {name: rows[part] for name, rows in condition.items()}


def up_to(family: Family, path: Tensor, until: float) -> Tensor:
    """The levels of a falling path that are not noisier than `until`. Raises UserError where only the image's is."""
    kept = path[path >= until - 1e-6]
    if len(kept) < 2:
        raise UserError(
            f"an inversion until timestep {timestep_of(family, torch.tensor(until)):.4g} has no step: the first of the "
            f"grid goes to {timestep_of(family, path[1]):.4g}; take a later timestep or more steps"
        )
    return kept


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
