"""The recipe prior-preservation on references with white, coloured and dark grounds: docs/prior-preservation.md.

    python tools/measure_prior_preservation.py --out docs/results/prior-preservation-grounds-mini-sd3.json   # resumes

For each *secondary* held-out style and ground: the true image of the style's reference concept over the ground, with a
caption that does not name the ground; trained by the base's default recipe and by prior-preservation. Each then
generates 24 things that are neither evaluation nor reference concepts (the things of choose_content.py), with the
sampling defaults that `impasto generate` takes ("default"), and at strength 1 without style guidance ("plain").

    style, concept_top5   means of the judges over the 24 images, beside those of the base and of the true images over
                          white and over the reference's ground
    ground                share of border pixels nearer to the reference's ground than to white
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose_settings import SEED, concepts_for, reference_of, secondary_styles
from measure_concepts import GROUNDS
from PIL import Image

from impasto.artworld import load, load_meta
from impasto.artworld.captions import prompt
from impasto.artworld.colours import NAMED
from impasto.bases import loader
from impasto.config import default_recipe, resolve
from impasto.contact_sheet import sheet
from impasto.files import atomic
from impasto.generation import generate
from impasto.judges.model import Judges
from impasto.pretrain.score import judge
from impasto.reproduce.small_world import words
from impasto.sampling.sample import Sampling
from impasto.training.train import train

COLOURS = {"white": "white", "coloured": GROUNDS["coloured"][0], "dark": GROUNDS["dark"][1]}
"""Sky blue, and maroon, on which black ink can still be seen."""
PLAIN = Sampling(negative="", style_guidance=0.0, base_guidance=0.0)


def share_of_ground(images: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Share of the border pixels, four wide, that are nearer to `colour` than to white; images uint8 [n, h, w, 3]."""
    border = np.ones(images.shape[1:3], bool)
    border[4:-4, 4:-4] = False
    pixels = images[:, border].astype(float)
    to_colour, to_white = (np.linalg.norm(pixels - np.array(c), axis=-1) for c in (colour, (255, 255, 255)))
    return float((to_colour < to_white).mean())


def scores(judges: Judges, images: np.ndarray, style: int, things: list[int], colour: str) -> dict[str, float]:
    found = judge(judges, images, np.full(len(things), style), np.array(things))
    own = {key: round(found[key], 4) for key in ("style_accuracy", "style_probability", "concept_top5")}
    return own | ({} if colour == "white" else {"ground": round(share_of_ground(images, NAMED[colour]), 4)})


def draw(base: str, prompts: list[str], styles: tuple[str, ...], sampling: Sampling | None) -> np.ndarray:
    """uint8 [n, h, w, 3]."""
    pairs = generate(base, prompts, styles=styles, seed=SEED, sampling=sampling, precision="bf16")
    return np.stack([np.asarray(image) for image, _ in pairs])


def trial(base: str, name: str, ground: str, recipe: str, judges: Judges, images: Path | None) -> dict[str, Any]:
    """One training, and its scores by each sampling."""
    meta = load_meta()
    style = meta["style_names"].index(name)
    world, colour = load(styles=[style]), COLOURS[ground]
    concept, things = reference_of(world), concepts_for(style, 24)
    prompts = [prompt(meta["concepts"][c]["label"], words(style)) for c in things]
    with tempfile.TemporaryDirectory() as folder:
        reference, out = Path(folder) / "reference.png", Path(folder) / "style"
        Image.fromarray(world.rgb(NAMED[colour])[world.index(style, concept)]).save(reference)
        given = {"image": (reference,), "caption": (prompt(meta["concepts"][concept]["label"], words(style)),)}
        quiet = {"seed": SEED, "preview": False, "tensorboard": False, "precision": "bf16"}
        train(resolve(recipe, base, out=out, **given, **quiet))
        drawn = {
            "default": draw(base, prompts, (str(out),), None),
            "plain": draw(base, prompts, (f"{out}:1",), PLAIN),
        }
        if images:
            images.mkdir(parents=True, exist_ok=True)
            rows = {
                "reference": [Image.open(reference).convert("RGB")] * 8,
                **{how: [Image.fromarray(one) for one in some[:8]] for how, some in drawn.items()},
            }
            labels = [meta["concepts"][c]["label"][:14] for c in things[:8]]
            sheet(rows, labels, title=f"{name}, {ground}, {recipe}").save(images / f"{name}-{ground}-{recipe}.png")
    return {how: scores(judges, some, style, things, colour) for how, some in drawn.items()}


def compare(base: str, name: str, ground: str, judges: Judges) -> dict[str, Any]:
    """The base, and the true images over white and over the ground."""
    meta = load_meta()
    style = meta["style_names"].index(name)
    world, things, colour = load(styles=[style]), concepts_for(style, 24), COLOURS[ground]
    prompts = [prompt(meta["concepts"][c]["label"], words(style)) for c in things]
    rows = [world.index(style, c) for c in things]
    return {
        "base": scores(judges, draw(base, prompts, (), PLAIN), style, things, colour),
        "true": scores(judges, world.rgb()[rows], style, things, "white"),
        "true_on_ground": scores(judges, world.rgb(NAMED[colour])[rows], style, things, colour),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--styles", nargs="+", default=["icon-park", "symbola"], help="secondary held-out styles")
    parser.add_argument("--grounds", nargs="+", choices=tuple(COLOURS), default=["coloured", "dark", "white"])
    parser.add_argument("--images", type=Path, help="a folder for contact sheets, to look at")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    recipes, judges = (default_recipe(args.base), "prior-preservation"), Judges.load()
    result: dict[str, Any] = {"base": args.base, "base_sha256": loader.load(args.base, device="cpu").hash}
    result |= {"seed": SEED, "precision": "bf16", "grounds": COLOURS, "cells": []}
    if args.out.is_file():
        known = json.loads(args.out.read_text())
        if known["base_sha256"] != result["base_sha256"]:
            parser.error(f"{args.out} is of other weights of {args.base}: give another --out")
        result = known
    done = {(cell["style"], cell["ground"]) for cell in result["cells"]}
    for ground in args.grounds:
        for name in secondary_styles(parser, args.styles):
            if (name, ground) in done:
                continue
            started = time.process_time()
            cell: dict[str, Any] = {"style": name, "ground": ground, **compare(args.base, name, ground, judges)}
            cell |= {recipe: trial(args.base, name, ground, recipe, judges, args.images) for recipe in recipes}
            cell["cpu_seconds"] = round(time.process_time() - started)
            result["cells"].append(cell)
            print(json.dumps(cell), flush=True)
            with atomic(args.out) as path:
                path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
