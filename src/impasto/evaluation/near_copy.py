"""Near-copies of a reference: images that repeat its composition, not only its style. Without an encoder.

    c(image) = max over r in R of the correlation of the 16 x 16 pixel means of image and r, each channel less its mean

R: the reference, crops of it at five places (CROPS of the shorter side) and all of these mirrored. An image is a
near-copy from c = THRESHOLD on. `tools/measure_near_copies.py` measures misses and false alarms on the art world.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 16
CROPS = (0.9, 0.8)
THRESHOLD = 0.8


def correlation(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Tensor:
    """c in [-1, 1] of each image, [n], the largest over the references; 0 for an image of one colour."""
    known = torch.cat([thumbnails(variants(reference)) for reference in references])
    return (thumbnails(images) @ known.T).amax(1)


def near_copies(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[bool]:
    """Whether each image is a near-copy of one of the references."""
    return (correlation(images, references) >= THRESHOLD).tolist()


def variants(reference: Image.Image) -> list[Image.Image]:
    """R, 22 images."""
    width, height = reference.size
    found = [reference]
    for share in CROPS:
        for x, y in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
            left, top = x * (1 - share) * width, y * (1 - share) * height
            box = (left, top, left + share * width, top + share * height)
            found.append(reference.resize(reference.size, Image.Resampling.LANCZOS, box))
    return found + [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in found]


def thumbnails(images: Sequence[Image.Image]) -> Tensor:
    """float32 [n, 3 SIDE^2]: pixel means less each channel's mean, of length 1 (0 for one colour)."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    pixels = np.stack([np.asarray(image, np.float32).reshape(-1, 3) for image in small])
    rows = (pixels - pixels.mean(1, keepdims=True)).reshape(len(pixels), -1)
    return torch.from_numpy(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6))
