"""Can the concept judge see a leak? docs/results/finestyle/leakage.json.

    python scripts/measure_leakage.py

Pairs of true images of held-out styles: one thing on white, and the same with a second thing pasted over it, at a share
of the image's side and at a random place. A leak counts as seen where the log-odds of the pasted thing rise. Control: a
third thing, which is not there. "centred": the rise less the median over all concepts, as anything that is added raises
most of them. Concepts: neither evaluation nor reference concepts.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import ArtWorld, free_concepts, load, load_meta
from impasto.evaluate.leakage import log_odds
from impasto.files import atomic
from impasto.judges.model import Judges

OUT = Path("docs/results/finestyle/leakage.json")
PAIRS, SEED = 200, 3
SIDES = (0.2, 0.3, 0.4)


def pairs(world: ArtWorld, styles: list[int], side: float) -> list[tuple[Image.Image, Image.Image, int, int, int]]:
    """(image, with a thing pasted, that thing, an absent thing, style) x PAIRS, over the styles in turn."""
    free, found = np.array(free_concepts()), []
    for i in range(PAIRS):
        rng, style = np.random.default_rng([SEED, i]), styles[i % len(styles)]
        drawn = np.intersect1d(free, world.concept_id[world.style_id == style])
        host, pasted, absent = (int(concept) for concept in rng.choice(drawn, 3, replace=False))
        image = Image.fromarray(world.select([style], [host]).rgb()[0])
        thing = Image.fromarray(world.rgba[world.index(style, pasted)])
        thing = thing.crop(thing.getchannel("A").getbbox())
        scale = side * image.width / max(thing.size)
        thing = thing.resize([max(1, round(length * scale)) for length in thing.size], Image.Resampling.HAMMING)
        corner = [int(rng.integers(image.width - length + 1)) for length in thing.size]
        both = image.copy()
        both.paste(thing, (corner[0], corner[1]), thing)
        found.append((image, both, pasted, absent, style))
    return found


def measure(judges: Judges, world: ArtWorld, styles: list[int], side: float) -> dict[str, Any]:
    """Shares and means over the pairs."""
    rows = pairs(world, styles, side)
    before, after = (log_odds(judges.concept([row[i] for row in rows])) for i in (0, 1))
    change, index = after - before, torch.arange(len(rows))
    pasted, absent = (torch.tensor([row[column] for row in rows]) for column in (2, 3))
    shown = judges.concept_threshold
    cell: dict[str, Any] = {"side": side, "pairs": len(rows)}
    for kind, rise in (("plain", change), ("centred", change - change.median(1, keepdim=True).values)):
        seen, control = rise[index, pasted], rise[index, absent]
        cell[kind] = {
            "raised": round((seen > 0).double().mean().item(), 3),
            "mean_rise": round(seen.mean().item(), 2),
            "absent_raised": round((control > 0).double().mean().item(), 3),
            "absent_mean_rise": round(control.mean().item(), 2),
        }
    cell["raised_more_than_the_absent"] = round(
        (change[index, pasted] > change[index, absent]).double().mean().item(), 3
    )
    cell["shown"] = round((after[index, pasted].sigmoid() >= shown).double().mean().item(), 3)
    names, by_style = load_meta()["style_names"], {}
    for style in styles:
        own = torch.tensor([row[4] == style for row in rows])
        by_style[names[style]] = round((change[index, pasted][own] > 0).double().mean().item(), 3)
    return cell | {"raised_by_style": by_style}


def main() -> None:
    torch.set_num_threads(1)
    judges, styles = Judges.load(), load_meta()["split"]["heldout_styles"]
    world = load(styles=styles, concepts=free_concepts())
    cells = [measure(judges, world, styles, side) for side in SIDES]
    result = {"concept_judge_sha256": judges.card["concept"]["sha256"], "seed": SEED, "cells": cells}
    with atomic(OUT) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    for cell in cells:
        print(cell)


if __name__ == "__main__":
    main()
