"""Scenes of one to four things on a plain ground, with the exact box of each.

Things are drawn in the order given, the later over the earlier ones. Randomness comes from `rng` (`random.Random` or
numpy's Generator): the same state gives the same scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from impasto.artworld.captions import Random
from impasto.artworld.world import ArtWorld

TRIES = 12  # places tried for a thing before it is made smaller
REFERENCE_SIZE, REFERENCE_SIDE = 256, (0.3, 0.45)
"""Pixels of a reference scene, and the range of its things' longer sides: no thing is larger than its own image."""


@dataclass(frozen=True)
class Scene:
    """One scene of n things.

    rgb: uint8 [size, size, 3].
    boxes: int32 [n, 4], the whole extent of each thing as (left, top, right, bottom) in pixels, the last two exclusive.
    visible: float32 [n], the share of each thing that nothing covers.
    """

    rgb: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray


def reference_scene(
    world: ArtWorld,
    style: str | int,
    concepts: Sequence[str | int],
    seed: int,
    background: Sequence[int] = (255, 255, 255),
    size: int = REFERENCE_SIZE,
) -> Scene:
    """A scene that serves as a reference image: these concepts in one style, none covering another.

    background: r, g, b. Raises UserError where the style lacks one of the concepts.
    """
    images = [world.rgba[world.index(style, concept)] for concept in concepts]
    return compose(images, size, np.random.default_rng(seed), REFERENCE_SIDE, background=background)


def compose(
    pictures: Sequence[np.ndarray],
    size: int,
    rng: Random,
    side: tuple[float, float] = (0.25, 1.0),
    overlap: float = 0.0,
    hidden: float = 0.4,
    background: Sequence[int] = (255, 255, 255),
) -> Scene:
    """Put `pictures` (uint8 [h, w, 4] each, straight alpha) together on a plain ground.

    size: side of the square canvas, pixels.
    side: range of a thing's longer side, as a share of the canvas; log-uniform. Where things find no room, they shrink
        (below the range only where it cannot be helped).
    overlap: share of scenes whose things may cover each other, each then at most to the share `hidden`.
    background: r, g, b, 0..255.
    Raises ValueError for no picture, an empty picture, or a range outside 0 < low <= high <= 1.
    """
    low, high = side
    if not (pictures and 0 < low <= high <= 1):
        raise ValueError(f"a scene needs pictures and 0 < low <= high <= 1, not {len(pictures)} and {side}")
    cut = [_object(picture) for picture in pictures]
    longest = [size * low * (high / low) ** rng.random() for _ in cut]
    allowed = hidden if rng.random() < overlap else 0.0
    while (placed := _place(cut, longest, size, allowed, rng)) is None:
        smallest = size * low if max(longest) > size * low else 0.0
        longest = [max(length * 0.8, smallest) for length in longest]
    return _draw(cut, placed, size, background)


def _object(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("a picture of a scene is empty")
    return image.crop(box)


def _place(cut, longest: list[float], size: int, allowed: float, rng: Random) -> np.ndarray | None:
    """Boxes int32 [n, 4] inside the canvas of which none covers more than the share `allowed` of an earlier one.

    Larger things choose first; None where one found no place in TRIES tries.
    """
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for i in sorted(range(len(cut)), key=lambda i: -longest[i]):
        scale = longest[i] / max(cut[i].size)
        w, h = (max(2, min(size, round(length * scale))) for length in cut[i].size)
        for _ in range(TRIES):
            x, y = int(rng.random() * (size - w + 1)), int(rng.random() * (size - h + 1))
            box = (x, y, x + w, y + h)
            if all(_covered(box, other) <= allowed for other in boxes.values()):
                boxes[i] = box
                break
        else:
            return None
    return np.array([boxes[i] for i in range(len(cut))], np.int32)


def _covered(a, b) -> float:
    """Area of the common part of two boxes, as a share of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _draw(cut, boxes: np.ndarray, size: int, background: Sequence[int]) -> Scene:
    canvas = Image.new("RGB", (size, size), tuple(int(value) for value in background))
    clear = np.ones((size, size), np.float32)  # what a thing drawn so far still shows through later ones
    visible = np.zeros(len(cut), np.float32)
    for i in reversed(range(len(cut))):
        left, top, right, bottom = boxes[i]
        # Pillow resizes RGBA with premultiplied alpha, so that no dark fringe appears.
        cut[i] = cut[i].resize((right - left, bottom - top), Image.Resampling.HAMMING)
        alpha = np.asarray(cut[i].getchannel("A"), np.float32) / 255
        region = clear[top:bottom, left:right]
        visible[i] = (alpha * region).sum() / max(alpha.sum(), 1e-6)
        region *= 1 - alpha
    for thing, (left, top, *_) in zip(cut, boxes, strict=True):
        canvas.paste(thing, (int(left), int(top)), thing)
    return Scene(np.array(canvas), boxes, visible)
