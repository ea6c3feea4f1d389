"""Objectives: what the loss compares. OBJECTIVES is the one table in which a name is looked up."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Generator, Tensor

from impasto.config import TrainConfig
from impasto.errors import UserError, nearest
from impasto.families.base import Condition, Family


@dataclass(frozen=True)
class Batch:
    """n draws: latents x_BCHW, noise eps_BCHW, and the conditions of each. All on the model's device.

    mask: weights of the loss (B, 1, h, w), each item's with mean 1; None weighs everything alike.
    prompts: the captions, "" where one was dropped. base_cond: what the base itself makes of them, where cond comes
    from text encoders that are trained; None says that it is cond.
    part: where these n are only a part, the number of the first one and how many the whole batch has.
    """

    x: Tensor
    eps: Tensor
    cond: Condition
    mask: Tensor | None = None
    prompts: tuple[str, ...] = ()
    base_cond: Condition | None = None
    part: tuple[int, int] | None = None


Objective = Callable[[Family, Batch, Tensor, list[Generator]], dict[str, Tensor]]
"""`objective(family, batch, lam_B, generators) -> {"loss": scalar, ...parts}`; the parts are logged as they are."""


OBJECTIVES = {
    "denoise": ("impasto.objectives.denoise", "denoise", "mean squared error of the prediction, unweighted"),
    "dco": (
        "impasto.objectives.dco",
        "dco",
        "the same, only as far as it betters the base's own (dco_beta, dco_reduction)",
    ),
}

ITEMWISE = ("denoise", "dco")
"""Objectives whose loss is a mean over items: a batch may go through in parts, see `data.draws.in_parts`."""


def objective(name: str) -> Objective:
    """The objective called `name`. Raises UserError on an unknown name."""
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}: {nearest(name, list(OBJECTIVES))}")
    module, function, _ = OBJECTIVES[name]
    return getattr(import_module(module), function)


def check(config: TrainConfig) -> None:
    """Raise UserError on an unknown name, and on settings that the objective does not have."""
    objective(config.objective)
    if config.weighting != "none" and config.objective != "denoise":
        raise UserError(
            f"a weighting belongs to the objective 'denoise', not to {config.objective!r}"
            + (", where it would be another dco_beta at each noise level" if config.objective == "dco" else "")
        )
    if config.objective != "dco" and (config.dco_beta, config.dco_reduction) != (1.0, "mean"):
        raise UserError("dco_beta and dco_reduction have no effect without --objective dco: leave them out")


def read(config: TrainConfig, family: Family) -> None:
    """Encode what `build` will ask for, as long as the text encoders are there. Raises UserError where it cannot be."""
    if config.prior_weight:
        import_module("impasto.objectives.prior").read(config, family)


def build(config: TrainConfig, family: Family) -> Objective:
    """The objective that the config names, its loss weighting, and prior preservation when that has a weight.

    Called when the base lies where it will be trained, quantised if it is to be, and before an adapter is added:
    preservation may let the base draw. Raises UserError on an unknown name.
    """
    check(config)
    fit: Any = objective(config.objective)
    if config.objective == "dco":
        fit = partial(fit, beta=config.dco_beta, reduction=config.dco_reduction)
    weight = import_module("impasto.objectives.weighting").build(config, family)
    if weight is not None:
        fit = partial(fit, weight=weight)
    if not config.prior_weight:
        return fit
    return import_module("impasto.objectives.prior").build(config, family, fit)
