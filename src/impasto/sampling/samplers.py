"""Samplers by name: diffusers schedulers that are used instead of a base's own, on the base's own noise schedule.

The names are the field's: euler and euler-ancestral are those of k-diffusion (Karras et al. 2022, arXiv 2206.00364;
the noise of a step comes from the image's generator), ddim is Song et al. 2020 (arXiv 2010.02502), dpm++-2m is
DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from impasto.errors import UserError, nearest
from impasto.families.base import Family, MakeScheduler
from impasto.noise.schedule import VariancePreserving


@dataclass(frozen=True)
class Sampler:
    """One sampler. label: its name in a PNG's `parameters`, as A1111 writes it.

    diffusion: the scheduler class on a variance-preserving schedule, flow: on a rectified flow; None where there is
    none. settings: what differs from the configuration of the base's own scheduler.
    """

    label: str
    diffusion: str | None
    flow: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


UNCLIPPED = {"clip_sample": False, "thresholding": False}
"""Latents are not limited to [-1, 1]."""
OWN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}

DEFAULT = "default"
SAMPLERS: dict[str, Sampler] = {
    DEFAULT: Sampler("", None),
    "euler": Sampler("Euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", OWN_SIGMAS),
    "euler-ancestral": Sampler("Euler a", "EulerAncestralDiscreteScheduler"),
    "ddim": Sampler("DDIM", "DDIMScheduler", None, UNCLIPPED),
    "dpm++-2m": Sampler(
        "DPM++ 2M",
        "DPMSolverMultistepScheduler",
        None,
        OWN_SIGMAS | {"algorithm_type": "dpmsolver++", "solver_order": 2, "thresholding": False},
    ),
}
"""`default` is the base's own scheduler."""


def scheduler_class(name: str, family: Family) -> str | None:
    """The diffusers class of the sampler `name` on a base; None for the base's own scheduler.

    Raises UserError for an unknown name, and for a sampler that the base's noise schedule does not have.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}: {nearest(name, list(SAMPLERS))}")
    if name == DEFAULT:
        return None
    if family.schedule.masked:
        raise UserError(f"sampler {name!r} is for Gaussian noise, and this base draws tokens: leave it out")
    kind = "diffusion" if isinstance(family.schedule, VariancePreserving) else "flow"
    if found := getattr(SAMPLERS[name], kind):
        return found
    possible = [key for key, one in SAMPLERS.items() if key == DEFAULT or getattr(one, kind)]
    raise UserError(f"sampler {name!r} is not for this base, a rectified flow: use {' or '.join(possible)}")


def make_scheduler(name: str, family: Family) -> MakeScheduler | None:
    """Configuration of the base's own scheduler -> the sampler's; None for the base's own. Raises as
    `scheduler_class`."""
    kind = scheduler_class(name, family)
    if kind is None:
        return None

    def make(config: Mapping[str, Any]) -> Any:
        import diffusers

        return getattr(diffusers, kind).from_config(config, **SAMPLERS[name].settings)

    return make


@contextmanager
def using(pipe: Any, make: MakeScheduler | None, until: float | None = None) -> Iterator[None]:
    """Inside, the pipeline samples with the scheduler that `make` makes; with its own where that is None. until: see
    `start_at`."""
    own = pipe.scheduler
    if make is not None:
        pipe.scheduler = make(own.config)
    if until is not None:
        pipe.scheduler = start_at(type(pipe.scheduler).from_config(pipe.scheduler.config), until)
    try:
        yield
    finally:
        pipe.scheduler = own


def start_at(scheduler: Any, until: float) -> Any:
    """The scheduler with grids that begin at the noisiest timestep that is not above `until`.

    until: 0 to 1000; a rectified flow's timesteps are its noise shares times 1000. Its `set_timesteps` raises UserError
    where no timestep is left.
    """
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def truncated(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        first = int((scheduler.timesteps > until + 1e-3).sum())
        if first == len(scheduler.timesteps):
            raise UserError(f"no timestep of {first} steps is below until {until:g}: take more steps, or a later one")
        scheduler.timesteps = scheduler.timesteps[first:]
        if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) > len(scheduler.timesteps):
            scheduler.sigmas = scheduler.sigmas[first:]

    scheduler.set_timesteps = truncated
    return scheduler


def set_scheduler(pipe: Any, name: str) -> None:
    """Give a plain diffusers pipeline the sampler `name`. Raises UserError for an unknown name."""
    import diffusers

    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}: {nearest(name, list(SAMPLERS))}")
    one = SAMPLERS[name]
    kind = one.diffusion if hasattr(pipe, "unet") else one.flow
    if kind:
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **one.settings)
