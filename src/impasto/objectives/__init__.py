"""Objectives: what the loss compares. OBJECTIVES is the one table in which a name is looked up."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Generator, Tensor

from impasto.config import TrainConfig
from impasto.errors import UserError, nearest
from impasto.families.base import Condition, Family


@dataclass(frozen=True)
class Batch:
    """n draws: latents x_BCHW, noise eps_BCHW, and the conditions of each. All on the model's device."""

    x: Tensor
    eps: Tensor
    cond: Condition


Objective = Callable[[Family, Batch, Tensor, list[Generator]], dict[str, Tensor]]
"""`objective(family, batch, lam_B, generators) -> {"loss": scalar, ...parts}`; the parts are logged as they are."""


OBJECTIVES = {"denoise": ("impasto.objectives.denoise", "denoise", "mean squared error of the prediction, unweighted")}


def build(config: TrainConfig, family: Family) -> Objective:
    """The objective that the config names. Raises UserError on an unknown name."""
    if config.objective not in OBJECTIVES:
        raise UserError(f"unknown objective {config.objective!r}: {nearest(config.objective, list(OBJECTIVES))}")
    module, function, _ = OBJECTIVES[config.objective]
    return getattr(import_module(module), function)
