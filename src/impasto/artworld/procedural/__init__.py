"""Procedural styles for pretraining: a continuous space of looks, each with a description of its parameters.

    look = random_look(rng)                 # a family with parameters, e.g. chalk in pale yellow on a dark teal board
    rgb = look(rgba, rng)                   # uint8 [128, 128, 3], from any image of the art world
    text = look.describe(rng)               # "pale yellow chalk drawing, wobbly, on a dark teal blackboard"
    rgb, text = sample(world, concept, rng) # all of it at once

They fill the style space between the 12 train styles, so that a base has neighbours of a new style. None imitates a
held-out style: no pixels, ground shadows, sparkles, 3D renders, engraving, heavy black lines with electric blue, grey
duotone lines, or white-cut black silhouettes. Randomness comes from `rng` alone (`random.Random` or numpy's Generator).

A family is a function that samples its parameters from a `Draw` and returns a `Look`: flat.py, light.py, drawing.py,
painting.py, printing.py, craft.py; shared code is in look.py, ground.py, contour.py and paint.py.
"""

from collections.abc import Callable, Sequence

import numpy as np

from impasto.artworld.captions import Random, choose
from impasto.artworld.procedural import craft, drawing, flat, light, painting, printing
from impasto.artworld.procedural.look import Draw, Look
from impasto.artworld.world import ArtWorld
from impasto.errors import UserError, nearest

__all__ = ["FAMILIES", "Look", "random_look", "sample"]

FAMILIES: dict[str, Callable[[Draw], Look]] = {
    "palette": flat.palette,
    "posterised": flat.posterised,
    "repainted": flat.repainted,
    "gradient map": flat.gradient_map,
    "outlined": flat.outlined,
    "sticker": flat.sticker,
    "offset": flat.offset_print,
    "paper cut": flat.paper_cut,
    "airbrush": light.airbrush,
    "night": light.night,
    "neon": light.neon,
    "x-ray": light.xray,
    "foil": light.foil,
    "chalk": drawing.chalk,
    "blueprint": drawing.blueprint,
    "crayon": drawing.crayon,
    "pencil": drawing.pencil,
    "marker": drawing.marker,
    "watercolour": painting.watercolour,
    "oil": painting.oil,
    "dabs": painting.dabs,
    "spray": painting.spray,
    "brush ink": painting.brush_ink,
    "halftone": printing.halftone,
    "riso": printing.riso,
    "block print": printing.block_print,
    "stained glass": craft.stained_glass,
    "mosaic": craft.mosaic,
    "embroidery": craft.embroidery,
    "crackle": craft.crackle,
}


def random_look(rng: Random, families: Sequence[str] | None = None) -> Look:
    """A look with random parameters, of any family or of one of `families`. Raises UserError for an unknown family."""
    name = choose(tuple(families or FAMILIES), rng)
    if name not in FAMILIES:
        raise UserError(f"unknown family of looks {name!r}: {nearest(name, list(FAMILIES))}")
    return FAMILIES[name](Draw(rng))


def sample(world: ArtWorld, concept: int, rng: Random, look: Look | None = None) -> tuple[np.ndarray, str]:
    """(uint8 [128, 128, 3], description): an image of `concept` (id) in `look`, by default a random one.

    The source image is in one of the look's train styles, or in any train style if `world` has no such image.
    Raises ValueError when `world` has no image of the concept in a train style.
    """
    look = look or random_look(rng)
    names, table = world.meta["style_names"], world.table()
    rows = [row for name in look.sources if (row := table[names.index(name), concept]) >= 0]
    rows = rows or [row for style in world.meta["split"]["train_styles"] if (row := table[style, concept]) >= 0]
    if not rows:
        raise ValueError(f"no image of concept {concept} in a train style")
    return look(world.rgba[choose(rows, rng)], rng), look.describe(rng)
