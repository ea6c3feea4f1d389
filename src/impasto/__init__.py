"""impasto: one picture becomes a style.

    import impasto

    config = impasto.resolve("style-friendly", image=["ref.png"], caption=["a rocket in neon style"], out="runs/neon")
    impasto.train(config)
    image, info = next(impasto.generate("mini-sd3", ["a cat in neon style"], styles=["runs/neon:0.8"]))
    scores = impasto.evaluate("runs/images")

    impasto.load_style(pipe, "runs/neon", 0.8)      # into a plain diffusers pipeline

Importing the package imports nothing else; what is named here is imported when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impasto.config import TrainConfig as TrainConfig
    from impasto.config import resolve as resolve
    from impasto.errors import UserError as UserError
    from impasto.evaluation.folder import evaluate as evaluate
    from impasto.generation import generate as generate
    from impasto.sampling.config import GenerateConfig as GenerateConfig
    from impasto.styles.load import load_style as load_style
    from impasto.training.checkpoint_style import checkpoint_style as checkpoint_style
    from impasto.training.train import train as train

__version__ = "0.1.0"

NAMES = {
    "train": "impasto.training.train",
    "generate": "impasto.generation",
    "evaluate": "impasto.evaluation.folder",
    "load_style": "impasto.styles.load",
    "checkpoint_style": "impasto.training.checkpoint_style",
    "TrainConfig": "impasto.config",
    "GenerateConfig": "impasto.sampling.config",
    "resolve": "impasto.config",
    "UserError": "impasto.errors",
}


def quiet_imports() -> None:
    """Keep messages that optional libraries log while they are imported to errors, unless a level was set for them."""
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree", "diffusers.utils.import_utils"):
        if logging.getLogger(library).level == logging.NOTSET:
            logging.getLogger(library).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name in NAMES:
        quiet_imports()
        return getattr(import_module(NAMES[name]), name)
    raise AttributeError(f"module 'impasto' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
