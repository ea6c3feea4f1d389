"""Settings of how a model is run."""

from dataclasses import dataclass
from typing import Literal

from impasto.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the model is run: memory against speed. What is learnt does not depend on it, but for `quantize`."""

    checkpointing: float | None = None
    """Gradient checkpointing: share of the blocks that are computed again in the backward pass, 0 to 1; as memory asks
    when not given."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the repeated blocks: auto does on CUDA, when the run is long enough to gain from it."""
    quantize: Literal["auto", "none", "nf4", "int8", "fp8"] = "auto"
    """The frozen base in fewer bits: auto does when it would not fit otherwise."""
    offload: Literal["auto", "on", "off"] = "auto"
    """The frozen base in CPU RAM, layer by layer on the device (CUDA): auto does when nothing else fits."""
    attention: str = "auto"
    """One of diffusers' attention backends (FLUX: native, flash, xformers, ...); auto is torch's own choice."""

    def __post_init__(self) -> None:
        if self.checkpointing is not None and not 0 <= self.checkpointing <= 1:
            raise UserError(f"checkpointing is a share, 0 to 1, not {self.checkpointing}")
