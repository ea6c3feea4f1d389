"""Scenes of one to four objects on a plain background, with exact bounding boxes.

Objects are composited in the given order, later ones on top. Randomness comes from `rng` (`random.Random` or numpy's
Generator): the same state gives the same scene.
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
    """One scene of n objects.

    rgb: uint8 [size, size, 3].
    boxes: int32 [n, 4], (left, top, right, bottom) of each whole object in pixels, the last two exclusive.
    visible: float32 [n], the uncovered share of each object.
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
    """Compose `pictures` (uint8 [h, w, 4] each, straight alpha) on a plain background.

    size: side of the square canvas, pixels.
    side: range of an object's longer side as a share of the canvas, log-uniform. Objects that do not fit are shrunk,
        below the range only if necessary.
    overlap: share of scenes whose objects may overlap; each is then covered at most to the share `hidden`.
    background: r, g, b, 0..255.
    Raises ValueError for no image, an empty image, or a range outside 0 < low <= high <= 1.
    """
    low, high = side
    if not (pictures and 0 < low <= high <= 1):
        raise ValueError(f"a scene needs pictures and 0 < low <= high <= 1, not {len(pictures)} and {side}")
    objects = [_crop_to_object(picture) for picture in pictures]
    longest = [size * low * (high / low) ** rng.random() for _ in objects]
    allowed = hidden if rng.random() < overlap else 0.0
    while (placed := _place_boxes(objects, longest, size, allowed, rng)) is None:
        smallest = size * low if max(longest) > size * low else 0.0
        longest = [max(length * 0.8, smallest) for length in longest]
    return _draw(objects, placed, size, background)


def _crop_to_object(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("a picture of a scene is empty")
    return image.crop(box)


def _place_boxes(objects, longest: list[float], size: int, allowed: float, rng: Random) -> np.ndarray | None:
    """Boxes int32 [n, 4] inside the canvas with pairwise `_overlap` of at most `allowed`.

    Larger objects are placed first; None if one did not fit in TRIES tries.
    """
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for i in sorted(range(len(objects)), key=lambda i: -longest[i]):
        scale = longest[i] / max(objects[i].size)
        w, h = (max(2, min(size, round(length * scale))) for length in objects[i].size)
        for _ in range(TRIES):
            x, y = int(rng.random() * (size - w + 1)), int(rng.random() * (size - h + 1))
            box = (x, y, x + w, y + h)
            if all(_overlap(box, other) <= allowed for other in boxes.values()):
                boxes[i] = box
                break
        else:
            return None
    return np.array([boxes[i] for i in range(len(objects))], np.int32)


def _overlap(a, b) -> float:
    """Area of the intersection of two boxes, as a share of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _draw(objects, boxes: np.ndarray, size: int, background: Sequence[int]) -> Scene:
    canvas = Image.new("RGB", (size, size), tuple(int(value) for value in background))
    clear = np.ones((size, size), np.float32)  # transmittance of the objects on top
    visible = np.zeros(len(objects), np.float32)
    for i in reversed(range(len(objects))):
        left, top, right, bottom = boxes[i]
        objects[i] = objects[i].resize((right - left, bottom - top), Image.Resampling.HAMMING)
        alpha = np.asarray(objects[i].getchannel("A"), np.float32) / 255
        region = clear[top:bottom, left:right]
        visible[i] = (alpha * region).sum() / max(alpha.sum(), 1e-6)
        region *= 1 - alpha
    for thing, (left, top, *_) in zip(objects, boxes, strict=True):
        canvas.paste(thing, (int(left), int(top)), thing)
    return Scene(np.array(canvas), boxes, visible)
