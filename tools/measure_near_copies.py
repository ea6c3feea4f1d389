"""Hits and false alarms of `evaluation.near_copy` on the packaged slice of the art world.

    python tools/measure_near_copies.py            # a minute; prints one JSON object

Of COUNT images as references: the share of near-copies among the other concepts in their style, among the same concept
in other styles, and among changed copies of themselves (JPEG 50, darker, cropped off centre, mirrored, small, paler).
"""

import io
import json

import numpy as np
from PIL import Image, ImageEnhance

from impasto.artworld import load_slice
from impasto.evaluation.near_copy import SIDE, THRESHOLD, correlation

COUNT = 80


def crop(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    side = image.width
    left, top = x * (1 - share) * side, y * (1 - share) * side
    return image.resize(image.size, Image.Resampling.LANCZOS, (left, top, left + share * side, top + share * side))


def copies(image: Image.Image) -> dict[str, Image.Image]:
    """Changed copies of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return {
        "jpeg": Image.open(buffer).convert("RGB"),
        "darker": ImageEnhance.Brightness(image).enhance(0.9),
        "paler": ImageEnhance.Color(image).enhance(0.8),
        "small": image.resize((96, 96)).resize(image.size),
        "crop .93": crop(image, 0.93, 0.75, 0.35),
        "crop .85": crop(image, 0.85, 0.65, 0.65),
        "mirrored crop .95": crop(image, 0.95, 0.5, 0.5).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }


def main() -> None:
    world = load_slice()
    images = [Image.fromarray(rgb) for rgb in world.rgb()]
    style, concept = np.asarray(world.style_id), np.asarray(world.concept_id)
    hits: dict[str, list[float]] = {}
    for i in np.random.default_rng(0).choice(len(images), COUNT, replace=False):
        kinds = {
            "other concepts, same style": (style == style[i]) & (concept != concept[i]),
            "same concept, other styles": (style != style[i]) & (concept == concept[i]),
        }
        for kind, mask in kinds.items():
            chosen = [images[k] for k in np.flatnonzero(mask)]
            if chosen:
                hits.setdefault(kind, []).extend((correlation(chosen, [images[i]]) >= THRESHOLD).tolist())
        for kind, image in copies(images[i]).items():
            hits.setdefault(f"copy: {kind}", []).append(bool(correlation([image], [images[i]])[0] >= THRESHOLD))
    shares = {kind: {"share": float(np.mean(found)), "n": len(found)} for kind, found in hits.items()}
    print(json.dumps({"side": SIDE, "threshold": THRESHOLD, "references": COUNT, "near_copies": shares}, indent=1))


if __name__ == "__main__":
    main()
