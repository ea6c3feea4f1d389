"""Content leakage: the reference's own object where another one was asked for.

An image leaks when the concept judge gives the reference's concept at least `threshold`. Images whose prompt asks for
that very concept, or names none, are left out. The judge errs, and some concepts look alike: the share is read beside
the same share of the base without adapter and of the true pictures.

A reference of several things leaks those that a prompt does not name. Of a thing c that the prompt does not name,

    leak = logit p_c(image) - logit p_c(base's image of the same prompt and seed)

which is above 0 where the image shows more of c than the base would, and needs no threshold. Anything that is added to
an image raises the log-odds of most concepts, so `centred` leaks are taken less the median over all concepts, whose own
log-odds then change by 0: docs/results/finestyle/leakage.json has both of things pasted into true images.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def leaks(
    probabilities: Tensor, concepts: Sequence[int | None], reference: int | None, threshold: float
) -> list[bool | None]:
    """Per image: does it show the concept `reference`? None when that cannot be said (see above).

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
    to show it.
    """

    images: int
    log_odds: float
    shown: float
    base_shown: float


@dataclass(frozen=True)
class SceneLeak:
    """log_odds: mean leak over images of the mean over the things that a prompt does not name; standard_error: of that,
    None of a single image. things: concept -> its own, without those that every prompt names."""

    log_odds: float
    standard_error: float | None
    images: int
    things: dict[int, ThingLeak]


def log_odds(probabilities: Tensor) -> Tensor:
    """log p / (1 - p), float64; p within [1e-30, 1 - 1e-7], the ends of what a float32 sigmoid tells apart."""
    p = probabilities.double().clamp(1e-30, 1 - 1e-7)
    return p.log() - torch.log1p(-p)


def scene_leak(
    probabilities: Tensor,
    base_probabilities: Tensor,
    reference: Collection[int],
    asked: Sequence[Collection[int]],
    threshold: float,
    centred: bool = False,
) -> SceneLeak | None:
    """The leak of the reference's things into images, see above; None where every prompt names all of them.

    probabilities, base_probabilities [n, concepts]: of the images and of the base's with the same prompts and seeds.
    reference: the concepts that it shows. asked: per image those that its prompt names. threshold: probability from
    which a thing counts as shown. centred: less the median over all concepts, see above.
    """
    if not len(probabilities) == len(base_probabilities) == len(asked):
        counts = f"{len(probabilities)}, {len(base_probabilities)}, {len(asked)}"
        raise ValueError(f"as many images as images of the base and prompts are needed, not {counts}")
    things = sorted(reference)
    change = log_odds(probabilities) - log_odds(base_probabilities)
    gain = (change - change.median(1, keepdim=True).values if centred else change)[:, things]
    unasked = torch.tensor([[thing not in names for thing in things] for names in asked]).view(len(asked), len(things))
    if not unasked.any():
        return None
    found = {}
    for i, thing in enumerate(things):
        rows = unasked[:, i]
        if rows.any():
            shares = [(p[rows, thing] >= threshold).double().mean().item() for p in (probabilities, base_probabilities)]
            found[thing] = ThingLeak(int(rows.sum()), gain[rows, i].mean().item(), *shares)
    of_image = torch.stack([row[known].mean() for row, known in zip(gain, unasked, strict=True) if known.any()])
    n = len(of_image)
    error = of_image.std().item() / n**0.5 if n > 1 else None
    return SceneLeak(of_image.mean().item(), error, n, found)


def describe_leak(leak: SceneLeak, names: Sequence[str]) -> str:
    """ "shows the reference's other things: teapot 12 %, lion 0 %", the base's share behind it where that is not 0."""
    parts = [
        f"{names[thing]} {one.shown:.0%}" + (f" (base {one.base_shown:.0%})" if one.base_shown else "")
        for thing, one in leak.things.items()
    ]
    return "shows the reference's other things: " + ", ".join(parts).replace("%", " %")
