"""Settings of the optimisation."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from impasto.coerce import check_numbers
from impasto.errors import UserError, nearest

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a gradient becomes a step, and how often."""

    optimizer: str = "adamw"
    """adamw, adamw8bit, prodigy or muon."""
    lr: float = 1e-4
    """Learning rate; 1 with prodigy, which multiplies it by its own."""
    steps: int = 300
    """Optimiser steps."""
    batch: int = 1
    """Items (image, noise level, noise) per forward pass."""
    accumulate: int = 4
    """Forward passes per optimiser step."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    schedule: Schedule = "constant"
    """How the learning rate falls after the warm-up."""
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    ema: float = 0.0
    """Decay of the moving average of the adapter that is saved; 0 saves the adapter itself."""

    def __post_init__(self) -> None:
        check_numbers(
            self, above_0=("lr", "steps", "batch", "accumulate"), at_least_0=("weight_decay", "warmup", "ema")
        )
        if not 0 <= self.clip <= math.inf:
            raise UserError(f"clip must be at least 0, not {self.clip}")
        if self.ema >= 1:
            raise UserError(f"ema must be below 1 (for example 0.99), not {self.ema}")
        if self.warmup > self.steps:
            raise UserError(f"warmup {self.warmup} is more than steps {self.steps}: the rate would never reach lr")
        if self.schedule not in get_args(Schedule):
            raise UserError(f"unknown schedule {self.schedule!r}: {nearest(self.schedule, get_args(Schedule))}")
