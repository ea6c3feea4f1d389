"""Training: a config to a style folder, by the method that the config names."""

from typing import Any

from impasto.config import METHODS, TrainConfig
from impasto.progress import Progress, ignore
from impasto.registry import name_of


def train(config: TrainConfig, progress: Progress = ignore) -> dict[str, Any]:
    """Train into the style folder `config.out`, or resume there.

    Args:
        config: The settings, see `impasto.resolve`.
        progress: Called as work goes on, see `impasto.progress`.

    Returns:
        A summary: steps, resumed_from, loss, seconds, ...

    Raises:
        UserError: On bad input, when the loss is NaN or infinite, when memory or the disk is full.
        KeyboardInterrupt: After Ctrl-C, with a checkpoint written.
    """
    return METHODS[name_of(METHODS, config.method)].builder(config, progress)


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """The plan of `train`: settings, data with advice, noise levels, memory and time. Nothing is written.

    Raises:
        UserError: On everything that `train` would refuse before weights are read.
    """
    return METHODS[name_of(METHODS, config.method)].builder(config, dry_run=True)
