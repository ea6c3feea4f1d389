"""Where the scores can be trusted: which images the judges were made for, and what a similarity of a given size means.

The judges and the small CLIP know the art world at 128 px. Images of other bases are beyond them, and so is a reference
whose own concept the concept judge does not find. A cosine with the reference has no zero: it is shown between a floor,
its mean over unrelated images, and a ceiling, the reference against crops of itself.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from PIL import Image
from torch import Tensor

from impasto.artworld import load_slice
from impasto.bases.cards import card
from impasto.errors import UserError
from impasto.evaluation.encoders import Encoder
from impasto.evaluation.judged import concept_rows
from impasto.evaluation.samples import to_tensor

FOUND = 5
"""Rank up to which the judge has found a concept."""
UNRELATED = 64
CROPS = (0.6, 0.7, 0.8, 0.9)
"""Sides of the crops, as shares of the reference's shorter side; each in the middle, and mirrored."""


def check_bases(metas: Sequence[dict[str, Any]]) -> str | None:
    """Why the packaged judges and CLIP are not valid for images with this metadata; None where they are, or where the
    metadata name no base."""
    foreign = sorted({str(meta["base"]) for meta in metas if meta.get("base") and not is_embedded(str(meta["base"]))})
    if not foreign:
        return None
    return (
        f"the images are of {foreign[0]!r}, which the packaged judges and CLIP were not made for: their scores are not "
        "valid here and null; use --clip / --dino FOLDER_OR_ID"
    )


def is_embedded(base: str) -> bool:
    """Whether a base is an embedded one, or tuned from one. A base that is no longer here is not known: True."""
    try:
        return bool(card(base).get("embedded"))
    except UserError:
        return True


def check_reference(judges: Any, reference: Image.Image, concept: int) -> str | None:
    """Why concept scores are not valid for this reference: the judge does not find its own concept in it."""
    probabilities = judges.concept(to_tensor([reference]))
    (row,) = concept_rows(probabilities, judges.labels, [concept])
    if row["concept_rank"] <= FOUND:
        return None
    return (
        f"the concept judge does not recognise the reference: {judges.labels[concept]!r} is its guess number "
        f"{row['concept_rank']} ({row['concept_judged'][0]!r} the first), so concept scores and leakage are null"
    )


@cache
def unrelated_images() -> tuple[Image.Image, ...]:
    """UNRELATED images of the packaged slice, evenly spaced over its styles and concepts."""
    world = load_slice()
    step = len(world) // UNRELATED
    return tuple(Image.fromarray(rgb) for rgb in world.rgb()[::step][:UNRELATED])


def crops(image: Image.Image) -> list[Image.Image]:
    """Middle crops of the shares CROPS, each also mirrored, at the image's size."""
    side, found = min(image.size), []
    for share in CROPS:
        half = share * side / 2
        box = (image.width / 2 - half, image.height / 2 - half, image.width / 2 + half, image.height / 2 + half)
        crop = image.resize((side, side), Image.Resampling.LANCZOS, box)
        found += [crop, crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return found


def embed(model: Any, images: Sequence[Image.Image]) -> Tensor:
    """Unit vectors [n, d] of images, by an encoder or by the style judge's features."""
    return model.images(images) if isinstance(model, Encoder) else model.style_features(to_tensor(list(images)))


@lru_cache(maxsize=4)
def unrelated_embeddings(model: Any) -> Tensor:
    """`embed` of `unrelated_images`, the same for every reference."""
    return embed(model, unrelated_images())


def similarity_range(reference: Image.Image, model: Any) -> dict[str, float]:
    """{"floor", "ceiling"} of the cosine with the reference, see above. model: see `embed`."""
    own = embed(model, [reference])[0]
    floor, ceiling = (
        (found @ own).mean().item() for found in (unrelated_embeddings(model), embed(model, crops(reference)))
    )
    return {"floor": floor, "ceiling": ceiling}


def between(value: float | None, limits: dict[str, float]) -> float | None:
    """(value - floor) / (ceiling - floor): 0 is an unrelated image, 1 the reference itself. None where unknown."""
    width = limits["ceiling"] - limits["floor"]
    return None if value is None or width <= 0 else (value - limits["floor"]) / width
