"""Can the concept judge see a leak? docs/results/finestyle/leakage.json.

    python tools/measure_leakage.py

Pairs of true images of held-out styles: one thing on white, and the same with a second thing pasted over it, at .3 of
the image's side and at a random place. A leak counts as seen where the log-odds of the pasted thing rise. Control: a
third thing, which is not there: its log-odds should rise in half of the pairs. Concepts: neither evaluation nor
reference concepts.

    whole     log-odds of the whole image
    places    the largest of the whole image and its windows (`leakage.place_log_odds`)
    centred   the rise less the median over all concepts: what `leakage.scene_leak` does
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import ArtWorld, free_concepts, load, load_meta
from impasto.evaluation.leakage import log_odds, place_log_odds
from impasto.files import atomic
from impasto.judges.model import Judges

OUT = Path("docs/results/finestyle/leakage.json")
PAIRS, SEED = 200, 3
SIDE = 0.3


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


def measure(judges: Judges, rows: list[tuple[Image.Image, Image.Image, int, int, int]]) -> dict[str, Any]:
    """Shares and means over the pairs, by reading."""
    index = torch.arange(len(rows))
    pasted, absent = (torch.tensor([row[column] for row in rows]) for column in (2, 3))
    styles, names = torch.tensor([row[4] for row in rows]), load_meta()["style_names"]
    readings: dict[str, Any] = {}
    for where in ("whole", "places"):
        images = [row[0] for row in rows], [row[1] for row in rows]
        before, after = (
            log_odds(judges.concept(some)) if where == "whole" else place_log_odds(judges, some) for some in images
        )
        change = after - before
        shares = [(z[index, pasted].sigmoid() >= judges.concept_threshold).double() for z in (before, after)]
        for kind, rise in ((where, change), (f"{where}, centred", change - change.median(1, keepdim=True).values)):
            seen, control = rise[index, pasted], rise[index, absent]
            readings[kind] = {
                "raised": share(seen > 0),
                "mean_rise": round(seen.mean().item(), 2),
                "absent_raised": share(control > 0),
                "absent_mean_rise": round(control.mean().item(), 2),
                "raised_more_than_the_absent": share(seen > control),
                "shown_before_and_after": [round(one.mean().item(), 3) for one in shares],
                "raised_by_style": {names[s]: share(seen[styles == s] > 0) for s in styles.unique().tolist()},
            }
    return readings


def share(hits: torch.Tensor) -> float:
    return round(hits.double().mean().item(), 3)


def main() -> None:
    torch.set_num_threads(1)
    judges, styles = Judges.load(), load_meta()["split"]["heldout_styles"]
    world = load(styles=styles, concepts=free_concepts())
    readings = measure(judges, pairs(world, styles, SIDE))
    result = {"concept_judge_sha256": judges.card["concept"]["sha256"], "pairs": PAIRS, "side": SIDE, "seed": SEED}
    with atomic(OUT) as temporary:
        temporary.write_text(json.dumps(result | {"readings": readings}, indent=1) + "\n")
    for name, reading in readings.items():
        print(name, reading)


if __name__ == "__main__":
    main()
