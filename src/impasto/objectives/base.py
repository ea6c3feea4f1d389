"""The contract of an objective."""

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.objectives import OBJECTIVES
from impasto.registry import name_of

Objective = Callable[[Family, Batch, Tensor, list[Generator]], dict[str, Tensor]]
"""`objective(family, batch, lam_B, generators) -> {"loss": scalar, ...parts}`; the parts are logged as they are.

It may have two attributes: `text_family`, whose text encoders encode the captions' second form for
`Batch.teacher_cond`, and `provenance`, what recipe.toml states of it beside the settings."""


def build_objective(settings: Any, family: Family) -> Objective:
    """The objective of these settings on a base; no weights are read. Raises UserError where it does not fit."""
    name = name_of(OBJECTIVES, settings)
    if settings.masked != family.schedule.masked:
        kind = "predicts masked tokens" if family.schedule.masked else "has Gaussian noise"
        fitting = [key for key, entry in OBJECTIVES.items() if entry.settings_class.masked == family.schedule.masked]
        raise UserError(f"--objective {name} is not for this base, which {kind}: use {' or '.join(fitting)}")
    return OBJECTIVES[name_of(OBJECTIVES, settings)].builder(settings, family)
