"""Loss masks: what of a picture counts, from a file beside it, from its transparency, or a box of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from impasto.data.buckets import View
from impasto.data.cache import cached
from impasto.data.pictures import Picture, look
from impasto.data.references import Reference, load
from impasto.errors import UserError

LEAST = 0.01  # of a view that a mask must leave

Boxes = tuple[tuple[int, int, int, int], tuple[tuple[int, int, int, int], ...] | None]
"""(region, others), boxes (left, top, right, bottom) in pixels: what is in the region counts, and where others are
given everything that is in none of them."""
Mask = Path | str | Boxes
"""A file, "alpha", or boxes."""


def check(file: Path, picture: Picture) -> str:
    """The sha256 of a mask. Raises UserError unless it is a picture of the same size."""
    mask = look(file)
    if (mask.width, mask.height) != (picture.width, picture.height):
        raise UserError(
            f"the mask {str(file)!r} is {mask.width} x {mask.height} and its picture {picture.width} x "
            f"{picture.height}: make them the same size"
        )
    return mask.sha256


def check_left(picture: Picture, mask: Mask, sha256: str | None, views: Sequence[View]) -> None:
    """Raise UserError when the mask leaves less than LEAST of every view. mask: a file of that sha256, or "alpha"."""
    boxes = list(dict.fromkeys(view.box for view in views))
    key = {"left of": picture.sha256, "mask": sha256 or mask, "boxes": boxes}
    if cached(key, lambda: {"left": left(picture, mask, sha256, boxes)})["left"].max() < LEAST:
        raise nothing(picture)


def left(
    picture: Picture, mask: Mask, sha256: str | None, boxes: Sequence[tuple[float, float, float, float]]
) -> Tensor:
    """Per box the share that counts, in [0, 1]."""
    image = read(picture, mask, sha256).convert("F")
    means = [image.resize((1, 1), Image.Resampling.BOX, box=box).getpixel((0, 0)) for box in boxes]
    return torch.from_numpy(np.array(means, dtype=np.float32)) / 255


def read(picture: Picture, mask: Mask, sha256: str | None) -> Image.Image:
    """A mask, 8 bits grey. Raises UserError when its file, or the picture's, is not any more what was looked at."""
    return of(picture.load, mask, sha256)


def of(reference: Callable[[], Reference], mask: Mask, sha256: str | None) -> Image.Image:
    """A mask of a reference, 8 bits grey."""
    if isinstance(mask, Path):
        return grey(mask, sha256)
    if isinstance(mask, tuple):
        region, others = mask
        image = Image.new("L", reference().image.size, 0 if others is None else 255)
        for box in others or ():
            image.paste(0, box)
        image.paste(255, region)
        return image
    alpha = reference().alpha
    assert alpha is not None
    return alpha


def grey(file: Path, sha256: str | None) -> Image.Image:
    """A mask file, 8 bits grey, its values as they stand; what is transparent in it counts as black.

    Raises UserError when it is not any more what was looked at.
    """
    reference = load(file, colours=False)
    if reference.sha256 != sha256:
        raise UserError(f"the mask {str(file)!r} was changed while it was read: start again")
    image = reference.image.convert("L")  # on white: a v + 255 - a
    return ImageChops.subtract(image, ImageChops.invert(reference.alpha)) if reference.alpha else image


def nothing(picture: Picture) -> UserError:
    return UserError(f"the mask of {str(picture.path)!r} leaves nothing of it: white is what counts")
