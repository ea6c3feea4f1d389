"""Inversion noise on disk: one safetensors file, so that a style is sampled from the noise of its reference again.

Tensors: `noise` (1, C, h, w) float32, `log_snr` (n,) float64, the levels of the inversion, the image's own first. The
metadata's one entry, "impasto", is a JSON object: see `InversionNoise`, `level`, the terminal log-SNR, and the sha256
of the tensors' bytes. The same noise gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from impasto.errors import UserError
from impasto.files import atomic
from impasto.inversion import Trajectory

NOISE = "noise.safetensors"
KEY = "impasto"


@dataclass(frozen=True)
class NoiseInfo:
    """How noise was inverted. base_hash: `Family.hash`. size: pixels of the square image. steps: of the whole grid.
    caption: what the inversion was conditioned on. reference: sha256 of the image's file."""

    base_hash: str
    size: int
    steps: int
    caption: str
    reference: str = ""


@dataclass(frozen=True)
class InversionNoise:
    """noise: (1, C, h, w), float32. log_snr: (n,) float64, falling, as `Trajectory.log_snr`: what `sample` takes as
    `levels`."""

    noise: Tensor
    log_snr: Tensor
    info: NoiseInfo

    @classmethod
    def of(cls, trajectory: Trajectory, info: NoiseInfo) -> "InversionNoise":
        return cls(trajectory.noise.float().cpu(), trajectory.log_snr.double().cpu(), info)

    @property
    def level(self) -> float:
        """The terminal log-SNR; -inf for a rectified flow's pure noise."""
        return self.log_snr[-1].item()

    def check_base(self, base_hash: str) -> None:
        """Raise UserError unless it is noise of this base."""
        if self.info.base_hash != base_hash:
            raise UserError(
                f"the inversion noise is of another base (hash {self.info.base_hash[:10]}, this one is "
                f"{base_hash[:10]}): use the base of the inversion, or invert the reference with this one"
            )

    def check(self, base_hash: str, size: int) -> None:
        """Raise UserError unless it is noise of this base and size (pixels)."""
        self.check_base(base_hash)
        if self.info.size != size:
            raise UserError(
                f"the inversion noise is of {self.info.size} px and cannot be used at {size} px: --size "
                f"{self.info.size}, or invert the reference at the other size"
            )


def write(file: Path, noise: InversionNoise) -> None:
    """Write it atomically."""
    tensors = {"noise": noise.noise.contiguous(), "log_snr": noise.log_snr.contiguous()}
    content = asdict(noise.info) | {"level": str(noise.level), "sha256": digest(tensors)}
    with atomic(file) as path:
        path.write_bytes(save(tensors, {KEY: json.dumps(content, sort_keys=True)}))


def read(file: Path) -> InversionNoise:
    """Read a file of `write`. Raises UserError when there is none, when it is damaged, and when it is another file."""
    if not file.is_file():
        raise UserError(f"there is no inversion noise at {str(file)!r}: make it with impasto invert")
    try:
        with safe_open(file, "pt") as opened:
            content = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"the inversion noise {str(file)!r} is damaged ({error}): make it again with impasto invert"
        ) from None
    if not isinstance(content, dict) or not {"sha256", *NoiseInfo.__dataclass_fields__} <= content.keys():
        raise UserError(f"{str(file)!r} is not inversion noise: give the noise.safetensors of impasto invert")
    if tensors.keys() != {"noise", "log_snr"} or digest(tensors) != content["sha256"]:
        raise UserError(
            f"the inversion noise {str(file)!r} is damaged: its tensors are not those that were saved; make it again "
            "with impasto invert"
        )
    return InversionNoise(tensors["noise"], tensors["log_snr"], info_of(content))


def info_of(content: Mapping[str, Any]) -> NoiseInfo:
    return NoiseInfo(**{name: content[name] for name in NoiseInfo.__dataclass_fields__})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
