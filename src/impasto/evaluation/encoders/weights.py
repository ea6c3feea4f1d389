"""Weights of encoders that are published as pickles, after `impasto weights convert`: safetensors files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from impasto.bases.hub import HUB_ID
from impasto.errors import UserError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def find_folder(source: Path | str, row: str) -> Path:
    """The local file or folder of a path or hub id (downloaded). Raises UserError."""
    path = Path(source)
    if path.exists():
        return path
    if path.is_absolute() or not HUB_ID.fullmatch(str(source)):
        raise UserError(
            f"encoder {row}: {str(source)!r} does not exist: give {row}=FILE.safetensors, a folder or a hub id"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json", "*.txt"]))
    except Exception as error:  # hub, http and file system errors have no common class
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"encoder {row}: {source} cannot be downloaded: {first}; give a local copy: {row}=FOLDER"
        ) from None


def read_weights(source: Path | str, row: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of all in a folder or hub id. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find_folder(source, row)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    pickles = [file for file in (path.iterdir() if path.is_dir() else files) if file.suffix in PICKLES]
    if pickles and (not files or path.is_file()):
        raise UserError(f"encoder {row} reads safetensors: convert first, impasto weights convert {pickles[0]}")
    if not files:
        raise UserError(f"encoder {row}: {path} holds no .safetensors file")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"encoder {row}: {str(file)!r} is not a safetensors file: {error}") from None
    return {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}


def width(state: Mapping[str, Tensor], key: str, row: str) -> tuple[int, ...]:
    """The shape of a tensor that tells the size of a network. Raises UserError where it is missing."""
    if key not in state:
        raise UserError(f"encoder {row}: the weights lack {key!r}: they are not those of {row}")
    return tuple(state[key].shape)


def fill(model: nn.Module, state: Mapping[str, Tensor], row: str) -> Any:
    """Load a state; UserError where names or shapes differ."""
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"encoder {row}: the weights are not those of {row}: {first}") from None
    return model
