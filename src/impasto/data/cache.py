"""The cache of what was computed from pictures and prompts: one safetensors file per thing, under the hash of its key.

A file is named by all that it depends on, and tells it again inside: what belongs to another picture, caption, size or
base can never be read by mistake.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto.errors import UserError
from impasto.files import atomic, cache_dir

VERSION = 4  # of what is done to a picture and to a prompt


@dataclass(frozen=True, slots=True)
class Stored:
    """A float32 tensor in a cache file. digest: the file's name."""

    digest: str
    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    def read(self) -> Tensor:
        """Raises UserError where the file has been removed or damaged since."""
        file = path_of(self.digest)
        try:
            with safe_open(file, "pt") as tensors:
                if digest_of((tensors.metadata() or {}).get("key", "")) == self.digest:
                    return tensors.get_tensor(self.name).clone()
        except (FileNotFoundError, SafetensorError):
            pass
        raise UserError(f"the cache file {str(file)!r} was removed or damaged while it was in use: start again")


def unchanged(row: Tensor) -> Tensor:
    return row


class DiskRows(Sequence[Any]):
    """Tensors in cache files, each read when it is indexed, so that memory holds none of them; None where one is None.

    change: applied to a tensor that was read.
    """

    def __init__(self, stored: Sequence[Stored | None], change: Callable[[Tensor], Tensor] = unchanged) -> None:
        self.stored, self.change = stored, change

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, i: Any) -> Any:
        row = self.stored[i]
        return None if row is None else self.change(row.read())

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.stored if row is not None)

    def shape(self, i: int) -> torch.Size:
        """The shape of a row, of which nothing is read."""
        row = self.stored[i]
        assert row is not None
        return self.change(torch.empty(row.shape, device="meta")).shape


def cached(key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returns for `key`, on the CPU; from the cache when they were made before."""
    file, text = place(key)
    found = read(file, text)
    return write(file, text, make()) if found is None else found


def stored(key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Stored]:
    """As `cached`, float32, but what is in the cache is not read: only the shapes are."""
    file, text = place(key)
    shapes = read_shapes(file, text)
    if shapes is None:
        shapes = {name: tuple(t.shape) for name, t in write(file, text, make()).items()}
    return {name: Stored(file.stem, name, shape) for name, shape in shapes.items()}


def place(key: dict) -> tuple[Path, str]:
    """(the file of a key, the key as text, which the file holds)."""
    text = json.dumps(key | {"version": VERSION}, sort_keys=True)
    return path_of(digest_of(text)), text


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def path_of(digest: str) -> Path:
    return cache_dir("prepared", digest + ".safetensors")


def write(file: Path, text: str, made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they were written."""
    found = {name: t.detach().cpu().contiguous() for name, t in made.items()}
    with atomic(file) as temporary:
        save_file(found, temporary, metadata={"key": text})
    return found


def read(file: Path, text: str) -> dict[str, Tensor] | None:
    """The tensors of a cache file, or None when it is absent, damaged, or of another key."""
    return opened(file, text, lambda tensors, name: tensors.get_tensor(name).clone())


def read_shapes(file: Path, text: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the tensors that `read` returns, from the file's header."""
    return opened(file, text, lambda tensors, name: tuple(tensors.get_slice(name).get_shape()))


def opened(file: Path, text: str, get: Callable[[Any, str], Any]) -> dict[str, Any] | None:
    """`get(file, name)` of each tensor of a cache file, or None when it is absent, damaged, or of another key."""
    try:
        with safe_open(file, "pt") as tensors:
            if (tensors.metadata() or {}).get("key") != text:
                return None
            return {name: get(tensors, name) for name in tensors.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
