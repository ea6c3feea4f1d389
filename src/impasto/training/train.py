"""Training: a config to a style folder, by the method that the config names."""

from collections.abc import Callable
from typing import Any

from impasto.config import METHODS, TrainConfig
from impasto.registry import name_of

Progress = Callable[[int, float], None]
"""Called after each step with (step, loss)."""
Preparing = Callable[[int, int], None]
"""Called while images and captions are prepared with (done, of how many)."""


def train(config: TrainConfig, progress: Progress | None = None, preparing: Preparing | None = None) -> dict[str, Any]:
    """Train into `config.out`, or resume there; returns a summary.

    Raises UserError on bad input, when the loss is NaN or infinite, when memory or the disk is full; KeyboardInterrupt
    after Ctrl-C, with a checkpoint written.
    """
    return METHODS[name_of(METHODS, config.method)].builder(config, progress, preparing)


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """What `train` would do; nothing is written. Raises UserError."""
    return METHODS[name_of(METHODS, config.method)].builder(config, dry_run=True)
