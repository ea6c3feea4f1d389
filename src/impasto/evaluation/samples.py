"""Generated images on disk: PNGs with prompt, seed and settings in a text chunk `impasto`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.data import references
from impasto.errors import UserError
from impasto.sampling.png import read_png_metadata

SIZE = 128  # side in pixels of the judges' input


@dataclass(frozen=True)
class Sample:
    """One image of a folder. meta: the metadata written by `impasto generate`, {} if there is none."""

    path: Path
    meta: dict[str, Any]

    @property
    def image(self) -> Image.Image:
        """RGB, any size; read from disk on each access to save memory. Raises UserError, see `references.load`."""
        return references.load(self.path).image

    @property
    def prompt(self) -> str | None:
        """The prompt in the metadata, None if there is none."""
        return self.meta.get("prompt") or None


def open_image(path: Path) -> tuple[Image.Image, dict[str, Any]]:
    """(RGB image on white, metadata) of one file. Raises UserError when it cannot be read as an image."""
    return references.read(path).image, read_png_metadata(path)


def read_folder(folder: Path | str) -> list[Sample]:
    """All images of a folder, see `image_files`. Each is decoded once and not kept, so that damaged files are reported
    before scoring starts. Raises UserError when one cannot be read."""
    return [Sample(path, open_image(path)[1]) for path in image_files(folder)]


def read_readable(folder: Path | str) -> tuple[list[Sample], dict[int, UserError]]:
    """(samples in order, {position among all files: why it cannot be read}). Raises UserError when none can be read."""
    samples, unreadable = [], {}
    for i, path in enumerate(image_files(folder)):
        try:
            samples.append(Sample(path, open_image(path)[1]))
        except UserError as error:
            unreadable[i] = error
    if not samples:
        raise UserError(f"none of the {len(unreadable)} images of {folder} can be read; the first: {unreadable[0]}")
    return samples, unreadable


def image_files(folder: Path | str) -> list[Path]:
    """The images of a folder, sorted by name: the numbered ones (`0000.png`, ...) if there are any, else every PNG.
    Raises UserError when the folder is missing, is a file, or holds no PNG."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}: give the folder that `impasto generate --out` wrote")
    paths = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} holds no PNG: give the folder that `impasto generate --out` wrote")
    numbered = [path for path in paths if re.fullmatch(r"\d+", path.stem)]
    return numbered or paths


def to_tensor(images: list[Image.Image], size: int = SIZE) -> torch.Tensor:
    """float32 [n, 3, size, size] in [0, 1]; other sizes are resampled (Lanczos, antialiased)."""
    fitted = [im if im.size == (size, size) else im.resize((size, size), Image.Resampling.LANCZOS) for im in images]
    array = np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in fitted])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
