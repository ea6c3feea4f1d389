"""References of several things: three reference concepts of the art world in one held-out style on a plain ground."""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from impasto.artworld import concept_index, drawn_in, load_meta, load_slice, style_index
from impasto.artworld.captions import with_article
from impasto.artworld.colours import NAMED
from impasto.artworld.scenes import Scene, reference_scene

THINGS, REFERENCES, SEED = 3, 3, 9
GROUNDS = {
    "white": ("white",),
    "coloured": ("sky blue", "yellow", "lime green", "hot pink", "orange", "lavender", "sand", "turquoise"),
    "dark": ("navy", "maroon", "forest green", "charcoal"),
}


@cache
def triples(style: str) -> list[list[str]]:
    """Labels of the things of three references: reference concepts of different emoji groups, no thing twice."""
    concepts, rng = load_meta()["concepts"], np.random.default_rng([SEED, style_index(style)])
    known = [c for c in load_meta()["split"]["reference_concepts"] if c in drawn_in(style_index(style))]
    left, found = [known[i] for i in rng.permutation(len(known))], []
    for _ in range(REFERENCES):
        chosen: list[int] = []
        for concept in left:
            if len(chosen) < THINGS and concepts[concept]["group"] not in {concepts[c]["group"] for c in chosen}:
                chosen.append(concept)
        left = [concept for concept in left if concept not in chosen]
        found.append([concepts[concept]["label"] for concept in chosen])
    return found


@cache
def scene_of(style: str, number: int) -> dict[str, Any]:
    """The reference's part of a spec: name, things, ground and seed of the composition."""
    colourful = load_meta()["styles"][style_index(style)]["colour"]
    kind = ("white", "coloured", "dark" if colourful else "coloured")[number]
    rng = np.random.default_rng([SEED, style_index(style), number])
    ground, things = GROUNDS[kind][int(rng.integers(len(GROUNDS[kind])))], triples(style)[number]
    name = f"{', '.join(things)} on {ground}"
    return {"name": name, "things": things, "ground": ground, "seed": 1000 * style_index(style) + number}


def key_of(scene: Mapping[str, Any]) -> tuple[tuple[str, ...], str, int]:
    """(things, ground, seed)."""
    return tuple(scene["things"]), scene["ground"], scene["seed"]


@cache
def compose(style: str, things: tuple[str, ...], ground: str, seed: int) -> Scene:
    """The reference image with its true boxes."""
    concepts = [concept_index(label) for label in things]
    return reference_scene(load_slice([style], concepts), style_index(style), concepts, seed, NAMED[ground])


@cache
def scene_hash(style: str, things: tuple[str, ...], ground: str, seed: int) -> str:
    """sha256 of its pixels."""
    return hashlib.sha256(compose(style, things, ground, seed).rgb.tobytes()).hexdigest()


def on_ground(text: str, ground: str) -> str:
    """The art world's form of a caption that names the ground."""
    return f"{text}, on {with_article(ground)} background"
