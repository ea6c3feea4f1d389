"""Training: a config to a style folder, by the method that the config names."""

from typing import Any

from impasto.config import METHODS, TrainConfig
from impasto.progress import Progress, ignore
from impasto.registry import name_of


def train(config: TrainConfig, progress: Progress = ignore) -> dict[str, Any]:
    """Train into `config.out`, or resume there; returns a summary. progress: see `impasto.progress`.

    Raises UserError on bad input, when the loss is NaN or infinite, when memory or the disk is full; KeyboardInterrupt
    after Ctrl-C, with a checkpoint written.
    """
    return METHODS[name_of(METHODS, config.method)].builder(config, progress)


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """What `train` would do; nothing is written. Raises UserError."""
    return METHODS[name_of(METHODS, config.method)].builder(config, dry_run=True)
