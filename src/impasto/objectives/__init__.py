"""Objectives: what the loss compares. OBJECTIVES is the one table in which a name is looked up."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from torch import Generator, Tensor

from impasto.config import TrainConfig
from impasto.data.batch import Batch
from impasto.errors import UserError, nearest
from impasto.families.base import Family

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


def build(config: TrainConfig, family: Family) -> Objective:
    """The objective that the config names, with its loss weighting. Raises UserError on an unknown name."""
    check(config)
    fit: Any = objective(config.objective)
    if config.objective == "dco":
        fit = partial(fit, beta=config.dco_beta, reduction=config.dco_reduction)
    weight = import_module("impasto.objectives.weighting").build(config, family)
    return fit if weight is None else partial(fit, weight=weight)
