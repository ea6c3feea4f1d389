"""What is known of a picture without holding its pixels: thousands of them fit in memory.

A picture is decoded once to learn this, which also finds the damaged ones; the facts are cached under its content hash.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from impasto.data.cache import cached
from impasto.data.references import NOTES, Reference, content, load
from impasto.errors import UserError


@dataclass(frozen=True)
class Picture:
    """width, height: upright pixels. dhash: see `difference_hash`. notes: what had to be decided to read it."""

    path: Path
    sha256: str
    width: int
    height: int
    dhash: int = 0
    notes: tuple[str, ...] = ()

    def load(self) -> Reference:
        """The pixels. Raises UserError when the file is not any more what was looked at."""
        reference = load(self.path)
        if reference.sha256 != self.sha256:
            raise UserError(f"image {str(self.path)!r} was changed while it was read: start again")
        return reference


def look(path: Path) -> Picture:
    """The facts of the picture at `path`. Raises UserError as `references.load` does."""
    sha256 = hashlib.sha256(content(path)).hexdigest()
    width, height, dhash, *noted = cached({"facts of": sha256}, lambda: {"facts": facts(path, sha256)})[
        "facts"
    ].tolist()
    notes = tuple(note for note, is_so in zip(NOTES, noted, strict=True) if is_so)
    return Picture(path, sha256, width, height, dhash, notes)


def facts(path: Path, sha256: str) -> Tensor:
    """(width, height, dhash, whether each of NOTES holds), int64."""
    reference = Picture(path, sha256, 0, 0).load()
    noted = [note in reference.notes for note in NOTES]
    return torch.tensor([*reference.image.size, difference_hash(reference.image), *noted], dtype=torch.int64)


def difference_hash(image: Image.Image) -> int:
    """dHash of 64 bits (as a signed int): is each of 9 x 8 grey fields darker than the one to its right?

    Neal Krawetz, "Kind of like that" (hackerfactor.com, 2013). A few different bits mean nearly the same picture.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
    bits = (grey[:, :-1] < grey[:, 1:]).flatten()
    return int(np.packbits(bits).view(">u8").astype(np.uint64).view(np.int64)[0])
