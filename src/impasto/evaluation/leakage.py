"""Content leakage: the reference's object in images of other concepts.

An image leaks when the concept judge's probability of the reference's concept is at least `threshold`. Images whose
prompt names that concept, or none, are excluded. The judge errs, and some concepts look alike: compare the share with
that of the base without adapter and of the true images.

A reference of several things leaks those that a prompt does not name. Of a thing c that the prompt does not name,

    leak = logit p_c(image) - logit p_c(base's image of the same prompt and seed)

which is above 0 where the image shows more of c than the base would, and needs no threshold. Measured on things pasted
into true images (docs/results/finestyle/leakage.json), the bare difference says little: whatever is added to an image
raises most concepts. So logits are the largest over the whole image and WINDOWS of it, and leaks are taken less the
median over all concepts ("centred"), whose own leak then is 0 on average.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from impasto.judges.model import Judges

WINDOW, WINDOWS = 0.35, 5
"""Side of a window as a share of the image's shorter side, and their number each way."""


def leaks(
    probabilities: Tensor, concepts: Sequence[int | None], reference: int | None, threshold: float
) -> list[bool | None]:
    """Per image whether it shows the concept `reference`; None for excluded images (see above).

    probabilities [n, concepts] in [0, 1]; threshold in [0, 1].
    """
    if reference is None:
        return [None] * len(concepts)
    shown = (probabilities[:, reference] >= threshold).tolist()
    return [
        None if concept is None or concept == reference else bool(hit)
        for concept, hit in zip(concepts, shown, strict=True)
    ]


@dataclass(frozen=True)
class ThingLeak:
    """How much of one thing of the reference images show whose prompt does not name it.

    images: their number. log_odds: mean leak. shown, base_shown: shares of images, and of the base's, that are judged
    to show it. log_odds and base_shown are None without the base's images.
    """

    images: int
    shown: float
    log_odds: float | None = None
    base_shown: float | None = None


@dataclass(frozen=True)
class SceneLeak:
    """log_odds: mean leak over images of the mean over the things that a prompt does not name, None without the base's
    images; standard_error: of that, None of a single image. things: concept -> its own, without those that every prompt
    names."""

    log_odds: float | None
    standard_error: float | None
    images: int
    things: dict[int, ThingLeak]


def log_odds(probabilities: Tensor) -> Tensor:
    """log p / (1 - p), float64; p within [1e-30, 1 - 1e-7], the ends of what a float32 sigmoid tells apart."""
    p = probabilities.double().clamp(1e-30, 1 - 1e-7)
    return p.log() - torch.log1p(-p)


def place_log_odds(judges: Judges, images: Sequence[Image.Image]) -> Tensor:
    """float64 [n, concepts]: the largest log-odds that the concept judge gives a concept in the image or a window."""
    rows = [log_odds(judges.concept([image, *windows(image)])).amax(0) for image in images]
    return torch.stack(rows)


def windows(image: Image.Image) -> list[Image.Image]:
    """WINDOWS x WINDOWS squares that cover the image, each enlarged to its shorter side."""
    whole = min(image.size)
    side = round(WINDOW * whole)
    columns, rows = (np.linspace(0, length - side, WINDOWS).round().astype(int).tolist() for length in image.size)
    boxes = [(left, top, left + side, top + side) for top in rows for left in columns]
    return [image.convert("RGB").resize((whole, whole), Image.Resampling.BICUBIC, box) for box in boxes]


def scene_leak(
    odds: Tensor,
    base_odds: Tensor | None,
    reference: Collection[int],
    asked: Sequence[Collection[int]],
    threshold: float,
    centred: bool = True,
) -> SceneLeak | None:
    """The leak of the reference's things into images, see above; None where every prompt names all of them.

    odds, base_odds [n, concepts]: log-odds (`place_log_odds`) of the images and of the base's with the same prompts and
    seeds, None without those. reference: the concepts that it shows. asked: per image those that its prompt names.
    threshold: probability from which a thing counts as shown. centred: less the median over all concepts.
    """
    if not len(odds) == len(odds if base_odds is None else base_odds) == len(asked):
        counts = f"{len(odds)}, {len(odds if base_odds is None else base_odds)}, {len(asked)}"
        raise ValueError(f"as many images as images of the base and prompts are needed, not {counts}")
    things = sorted(reference)
    unasked = torch.tensor([[thing not in names for thing in things] for names in asked]).view(len(asked), len(things))
    if not unasked.any():
        return None
    rows = {thing: unasked[:, i] for i, thing in enumerate(things) if unasked[:, i].any()}
    shown = {thing: share_shown(odds, thing, own, threshold) for thing, own in rows.items()}
    counted = int(unasked.any(1).sum())
    if base_odds is None:
        return SceneLeak(None, None, counted, {t: ThingLeak(int(rows[t].sum()), shown[t]) for t in rows})
    change = odds - base_odds
    gain = (change - change.median(1, keepdim=True).values if centred else change)[:, things]
    found = {
        thing: ThingLeak(
            int(own.sum()),
            shown[thing],
            gain[own, things.index(thing)].mean().item(),
            share_shown(base_odds, thing, own, threshold),
        )
        for thing, own in rows.items()
    }
    of_image = torch.stack([row[known].mean() for row, known in zip(gain, unasked, strict=True) if known.any()])
    error = of_image.std().item() / counted**0.5 if counted > 1 else None
    return SceneLeak(of_image.mean().item(), error, counted, found)


def share_shown(odds: Tensor, thing: int, rows: Tensor, threshold: float) -> float:
    """Share of the rows whose probability of a thing is at least the threshold."""
    return (odds[rows, thing].sigmoid() >= threshold).double().mean().item()


def describe_leak(leak: SceneLeak, names: Sequence[str]) -> str:
    """ "shows the reference's other things: teapot 12 %, lion 0 %", the base's share behind it where that is not 0."""
    parts = [
        f"{names[thing]} {one.shown:.0%}" + (f" (base {one.base_shown:.0%})" if one.base_shown else "")
        for thing, one in leak.things.items()
    ]
    return "shows the reference's other things: " + ", ".join(parts).replace("%", " %")
