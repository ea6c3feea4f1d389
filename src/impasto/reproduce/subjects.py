"""Subjects: one object in four drawings of one recolouring, placed in other styles; how much of it is kept.

The recolouring makes the subject an individual: it is what training has to bind to the identifier, since the base knows
the object itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from impasto.artworld import load_meta
from impasto.evaluation.judged import concept_rows
from impasto.evaluation.labels import Labels
from impasto.evaluation.samples import read_folder, to_tensor
from impasto.reproduce import image_sets

IDENTIFIER = "zwx"
TURN = 150  # degrees of hue
DRAWN_IN = ("twemoji", "noto", "fluent-emoji-flat", "emojione")
"""Styles of the references: coloured ones."""
PLACED_IN = ("fxemoji", "noto-v1", "openmoji", "emojione-v1")
"""Other coloured styles that the base knows."""
OTHER = ("openmoji-black", "emojione-monotone", "noto-emoji-mono", "fluent-emoji-high-contrast")
"""Styles of the prior's prompts beside those of the references."""
COMPANIONS = ("", " and a mountain")
SUBJECTS = ("guitar", "t-shirt", "crown", "rabbit face", "bus", "castle", "pig face", "basketball", "fire")


def subject_units(cells: str, seeds: int, styles: Sequence[str] = DRAWN_IN) -> dict[str, dict[str, Any]]:
    """Subjects x seeds; one subject for smoke cells."""
    return {
        f"{label}, {seed}": subject_unit(label, seed, styles)
        for label in SUBJECTS[: 1 if cells == "smoke" else len(SUBJECTS)]
        for seed in range(seeds)
    }


def subject_unit(label: str, seed: int, styles: Sequence[str]) -> dict[str, Any]:
    """One subject: references, prompts with and without the identifier (`plain`)."""
    names = load_meta()["style_names"]
    data = {"styles": list(styles), "part": [0, 1], "count": 1, "concepts": [label], "turn": TURN}
    data["captions"] = f"{IDENTIFIER} {{label}}, {{style}}"
    data["prior"] = [f"{label}, {image_sets.words(names.index(style))}" for style in (*styles, *OTHER)]
    placed = [(label + more, names.index(style)) for style in PLACED_IN for more in COMPANIONS]
    plain = [f"{what}, {image_sets.words(style)}" for what, style in placed]
    return {
        "style": label,
        "reference": label,
        "data": data,
        "seed": seed,
        "subject_data": label,
        "prompts": [f"{IDENTIFIER} {prompt}" for prompt in plain],
        "plain": plain,
    }


def subject_scores(folder: Path, spec: Mapping[str, Any], judges: Any, encoder: Any) -> dict[str, float]:
    """subject: mean cosine of image embeddings with the recoloured references minus that with the same drawings in
    their own colours; clip_i_reference: the former; concept_top5: the object is recognised; style_accuracy: the judged
    style is the prompted one."""
    images = [sample.image for sample in read_folder(folder)]
    recoloured, original = (embed(encoder, {**spec["data"], "turn": turn}) for turn in (spec["data"]["turn"], 0))
    x = encoder.images(images)
    to, other = x @ recoloured, x @ original
    labels = Labels.from_meta(load_meta())
    pixels = to_tensor(images)
    rows = concept_rows(judges.concept(pixels), judges.labels, [labels.named(spec["subject_data"])] * len(images))
    names = load_meta()["style_names"]
    wanted = torch.tensor([names.index(style) for style in PLACED_IN for _ in COMPANIONS])
    return {
        "subject": float((to - other).mean()),
        "clip_i_reference": float(to.mean()),
        "concept_top5": sum(bool(row["concept_top5"]) for row in rows) / len(rows),
        "style_accuracy": float((judges.style(pixels).argmax(-1) == wanted).float().mean()),
    }


def embed(encoder: Any, data: Mapping[str, Any]) -> Tensor:
    """Mean embedding [d] of a set, of length 1."""
    return normalize(encoder.images([Image.fromarray(image) for image in image_sets.images(data)]).mean(0), dim=0)
