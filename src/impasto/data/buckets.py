"""Shapes that pictures are trained at, and the parts of a picture that are cut out for them.

A bucket is a width and height in whole steps with at most size^2 pixels. A picture goes into the bucket whose aspect
ratio is nearest to its own; it is scaled down until it just covers the bucket, and what juts out is cut off. It is
never scaled up: when it does not cover the bucket, the buckets of `size - step`, `size - 2 step`, .. are tried, down to
half of `size`. No side is longer than the base's positions reach. Steps are 64 pixels, or what the base's card says, or
at less than 512 pixels the base's own patch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from impasto.bases.hub import part_config
from impasto.noise.random import generator

Shape = tuple[int, int]
"""(width, height) in pixels."""
STEP, ZOOM = 64, 0.7
PAD, LEAST_SIDE = 0.1, 0.4
"""Of a crop around a region: the margin at each side, as a share of the region's, and the least side, as a share of the
image's shorter one."""


@dataclass(frozen=True)
class View:
    """What is cut out of a picture: `box` (left, top, right, bottom), scaled to `shape`, maybe mirrored."""

    box: tuple[float, float, float, float]
    shape: Shape
    mirrored: bool = False

    def record(self, width: int, height: int) -> tuple[int, ...]:
        """SDXL's size conditions (arXiv 2307.01952, section 2.2) of a view of a `width` x `height` picture.

        (original height, width, crop top, left, target height, width); the crop is counted in pixels of the scaled
        picture.
        """
        left, top, right, bottom = self.box
        left = width - right if self.mirrored else left
        scale_x, scale_y = self.shape[0] / (right - self.box[0]), self.shape[1] / (bottom - top)
        return (height, width, round(top * scale_y), round(left * scale_x), self.shape[1], self.shape[0])


@cache
def shapes(size: int, step: int, largest: int | None = None) -> tuple[Shape, ...]:
    """All buckets of an area: sides from size / 2 to 2 size, `largest` at most if that is no None, and for each width
    the largest height, both ways."""
    first, last = math.ceil(size / 2 / step) * step, min(2 * size, largest or 2 * size)
    found = set()
    for width in range(first, last + 1, step):
        height = size * size // width // step * step
        if first <= height <= last:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def choose(width: int, height: int, size: int, step: int, largest: int | None = None) -> Shape | None:
    """The bucket of a picture; None when it is too small for every one. largest: see `shapes`."""

    def distance(shape: Shape) -> tuple[float, int]:
        return abs(math.log(width * shape[1] / (height * shape[0]))), -shape[0] * shape[1]

    for area in range(size, size // 2 - 1, -step):
        nearest = min(shapes(area, step, largest), key=distance, default=None)
        if nearest and nearest[0] <= width and nearest[1] <= height:
            return nearest
    return None


def step_of(card: Mapping[str, Any], base: str, size: int) -> int:
    """Pixels between two buckets' sides: the card's `bucket_step`, 64, or below 512 pixels the base's patch."""
    if "bucket_step" in card:
        return int(card["bucket_step"])
    return patch(base) or STEP if size < 512 else STEP


def patch(base: str) -> int | None:
    """Pixels that one token of the denoiser stands for, from the configurations of a folder, a hub id or a single file;
    None when they cannot be had."""
    if Path(base).is_file():
        from impasto.bases import single_file

        base = str(single_file.config_folder(Path(base)))
    try:
        vae = part_config(base, "vae/config.json")
        pixels = 2 ** (len(vae["block_out_channels"]) - 1)
        denoiser = part_config(base, "transformer/config.json") or part_config(base, "unet/config.json")
        blocks = len(denoiser["block_out_channels"]) if "block_out_channels" in denoiser else 1
        packed = 2 if denoiser["in_channels"] == 4 * vae["latent_channels"] else 1  # FLUX: 2 x 2 latents are a token
        return pixels * 2 ** (blocks - 1) * denoiser.get("patch_size", 1) * packed
    except (KeyError, TypeError):
        return None


def covering(
    width: int, height: int, shape: Shape, zoom: float = 1.0, x: float = 0.5, y: float = 0.5
) -> tuple[float, float, float, float]:
    """The largest box of the shape's aspect ratio times `zoom`, at (x, y) of its room (.5 is the middle)."""
    ratio = shape[0] / shape[1]
    box_width, box_height = float(width), float(height)
    if width / height > ratio:
        box_width = ratio * height
    elif width / height < ratio:
        box_height = width / ratio
    box_width, box_height = box_width * zoom, box_height * zoom
    left, top = (width - box_width) * x, (height - box_height) * y
    return left, top, left + box_width, top + box_height


def views(
    width: int, height: int, shape: Shape, crops: int, flip: bool, name: str, scale: float | None = None
) -> tuple[View, ...]:
    """The middle, `crops` - 1 random crops, and with `flip` each of them mirrored as well.

    A random crop shows .7 to 1 of the side lengths of the largest box, anywhere, and is never scaled up; it is a
    function of (name, its number). A picture that leaves no room has its middle only. scale: the least share instead,
    down to which crops are scaled up where the picture is small.
    """
    middle = covering(width, height, shape)
    boxes = {middle: None}
    least = max(ZOOM, shape[0] / (middle[2] - middle[0])) if scale is None else scale
    for k in range(1, crops if least <= 1 else 1):
        zoom, x, y = torch.rand(3, generator=generator(0, k, f"crop of {name}")).tolist()
        boxes[covering(width, height, shape, least + zoom * (1 - least), x, y)] = None
    return tuple(View(box, shape, mirrored) for mirrored in ((False, True) if flip else (False,)) for box in boxes)


def region_size(box: Sequence[int], width: int, height: int) -> tuple[float, float]:
    """Width and height of a region with its margin, LEAST_SIDE of the image at least and the image at most."""
    least = LEAST_SIDE * min(width, height)
    sides = [max((1 + 2 * PAD) * (box[2 + i] - box[i]), least) for i in (0, 1)]
    return min(sides[0], width), min(sides[1], height)


def region_views(
    box: Sequence[int], width: int, height: int, shape: Shape, crops: int, jitter: float, flip: bool, name: str
) -> tuple[View, ...]:
    """Crops around a region of a `width` x `height` picture: the smallest boxes of the shape's aspect ratio that hold
    it with its margin, inside the picture.

    The first one is centred; the other `crops` - 1 are shifted by up to `jitter` of their sides, as a function of
    (name, its number). With `flip` each of them mirrored as well.
    """
    wanted, ratio = region_size(box, width, height), shape[0] / shape[1]
    crop_width = min(max(wanted[0], wanted[1] * ratio), width, height * ratio)
    sides, limits = (crop_width, crop_width / ratio), (width, height)
    boxes = {}
    for k in range(crops):
        shift = torch.rand(2, generator=generator(0, k, f"region of {name}")).tolist() if k else (0.5, 0.5)
        corner = []
        for i in (0, 1):
            start = (box[i] + box[2 + i]) / 2 + ((2 * shift[i] - 1) * jitter - 0.5) * sides[i]
            corner.append(min(max(start, 0.0), limits[i] - sides[i]))
        boxes[*corner, corner[0] + sides[0], corner[1] + sides[1]] = None
    return tuple(View(crop, shape, mirrored) for mirrored in ((False, True) if flip else (False,)) for crop in boxes)
