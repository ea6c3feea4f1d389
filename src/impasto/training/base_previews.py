"""What the base alone makes of the caption, before training: if it is the reference's style already, training on it
brings little, and other words or another reference would show more.

The nearness of an image to the reference is the cosine of their features in the packaged style judge, placed between
unrelated images (0) and the reference's own crops (1), see `evaluation.validity`.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from PIL import Image

from impasto.evaluation.validity import between, embed, is_embedded, similarity_range

KNOWN = 0.5
"""Nearness from which a base seems to know a style; `tools/measure_known_style.py` is where it comes from."""


def nearness(reference: Image.Image, images: Sequence[Image.Image], judges: Any) -> float:
    """Mean nearness of images to the reference, see above."""
    own = embed(judges, [reference])[0]
    limits = similarity_range(reference, judges)
    return mean(between(cosine, limits) or 0.0 for cosine in (embed(judges, images) @ own).tolist())


def describe_base(base: str, reference: Image.Image, images: Sequence[Image.Image]) -> str | None:
    """A sentence where the base's images of the caption are near the reference; None elsewhere, and for bases that the
    packaged judge was not made for."""
    if not images or not is_embedded(base):
        return None
    from impasto.judges.model import Judges

    near = nearness(reference, images, Judges.load())
    if near < KNOWN:
        return None
    return (
        f"the base seems to know this style already: its own images of the caption are {near:.0%} of the way from "
        "unrelated images to the reference (previews/base), so training on it can show little"
    )
