"""FineStyle on one scene: style, content and leakage, beside training on the whole image alone and the base.

    python tools/measure_finestyle.py --style 3 --arms finestyle whole      # runs/finestyle/STYLE/..., report on stdout

A scene of three things in one secondary style on white (`artworld.scenes.reference_scene`). Arms: finestyle (the
recipe, regions found by the base), centred (the same with the true boxes), boxes (true boxes, crops with jitter), kv
(finestyle-kv), whole (the same adapter, trained on the whole image alone). Each is sampled at strength 1 by its own
default and, as "NAME, ordinary", by guidance 4.

    style     share of images that the style judge puts into the style
    top5      share whose concept is among the concept judge's five first
    leak      `leakage.scene_leak` of the three things against the base's images of the same seeds

sheet.png shows the images, variations.png one or two of the reference's things at a time, by every arm.
"""

import argparse
import json
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import free_concepts, load, load_meta
from impasto.artworld.captions import join_labels
from impasto.artworld.scenes import reference_scene
from impasto.config import resolve
from impasto.contact_sheet import sheet
from impasto.evaluation.leakage import describe_leak, place_log_odds, scene_leak
from impasto.generation import generate
from impasto.guidance.config import StyleSemantics
from impasto.judges.model import Judges
from impasto.training.train import train

THINGS, ORDINARY = 3, StyleSemantics(0.0, 3.0, 0.0, n1="", n2="")
ARMS: dict[str, dict[str, Any]] = {
    "finestyle": {"recipe": "finestyle"},
    "boxes": {"recipe": "finestyle", "data.concept_jitter": 0.1},
    "centred": {"recipe": "finestyle", "data.concept_jitter": 0.0},
    "kv": {"recipe": "finestyle-kv"},
    "whole": {"recipe": "finestyle", "method": "fit"},
}


def reference(folder: Path, style: int, seed: int) -> tuple[Path, str, list[int], str, str]:
    """(scene.png, its caption, its concepts, its style words, its true boxes) in `folder`."""
    meta = load_meta()
    pool = [concept for concept in free_concepts() if concept in set(meta["drawn"][style])]
    things = [int(concept) for concept in np.random.default_rng([7, style, seed]).choice(pool, THINGS, replace=False)]
    scene = reference_scene(load(styles=[style], concepts=things), style, things, seed=1000 * style + seed)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.rgb).save(folder / "scene.png")
    words = meta["styles"][style]["descriptions"][0]
    caption = f"{join_labels([meta['concepts'][concept]['label'] for concept in things])}, {words}"
    boxes = "; ".join(",".join(map(str, box)) for box in scene.boxes.tolist())
    return folder / "scene.png", caption, things, words, boxes


def train_arm(
    arm: str, base: str, image: Path, caption: str, words: str, boxes: str, steps: int, precision: str
) -> Path:
    """The style folder of an arm."""
    out, settings = image.parent / arm, dict(ARMS[arm])
    if settings.get("method") != "fit":
        settings |= {"method.style_words": words} | ({"method.boxes": boxes} if arm in ("boxes", "centred") else {})
    paths = {"image": (image,), "caption": (caption,), "out": out, "steps": steps, "tensorboard": False}
    paths |= {"precision": precision, "preview": False}
    train(resolve(settings.pop("recipe"), base, **paths, **settings))
    return out


def variations(args: argparse.Namespace, folder: Path, words: str, things: list[str]) -> None:
    """Write variations.png: a row per arm, a column per subset of the things."""
    subsets = [[thing] for thing in things] + [list(pair) for pair in combinations(things, 2)]
    prompts = [f"{join_labels(own)}, {words}" for own in subsets]
    styles = {"base": [], **{arm: [f"{folder / arm}:1"] for arm in args.arms}}
    rows = {
        name: [one for one, _ in generate(args.base, prompts, styles=own, precision=args.precision)]
        for name, own in styles.items()
    }
    columns = [" + ".join(own) for own in subsets]
    made = sheet(rows, columns, title=f"asked for, {words}", reference=Image.open(folder / "scene.png"))
    made.save(folder / "variations.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure FineStyle on one scene.")
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--style", type=int, default=0, help="number among the secondary styles")
    parser.add_argument("--scene", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["finestyle", "whole"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--concepts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/finestyle"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meta, judges = load_meta(), Judges.load()
    style = meta["split"]["secondary_styles"][args.style]
    folder = args.out / f"{args.base}-{meta['style_names'][style]}-{args.scene}"
    image, caption, things, words, boxes = reference(folder, style, args.scene)
    print(meta["style_names"][style], caption, flush=True)
    pool = [c for c in meta["split"]["evaluation_concepts"] if c in set(meta["drawn"][style]) and c not in things]
    asked = pool[: args.concepts]
    prompts = [f"{meta['concepts'][concept]['label']}, {words}" for concept in asked]
    drawn = {"base": list(generate(args.base, prompts, precision=args.precision))}
    for arm in args.arms:
        out = train_arm(arm, args.base, image, caption, words, boxes, args.steps, args.precision)
        styles = [f"{out}:1"]
        drawn[arm] = list(generate(args.base, prompts, styles=styles, precision=args.precision))
        drawn[f"{arm}, ordinary"] = list(
            generate(args.base, prompts, styles=styles, guidances=[ORDINARY], precision=args.precision)
        )
    odds = {name: place_log_odds(judges, [one for one, _ in made]) for name, made in drawn.items()}
    result = {}
    for name, made in drawn.items():
        images = [one for one, _ in made]
        top5 = judges.concept(images).topk(5).indices
        hits = [concept in row for concept, row in zip(asked, top5.tolist(), strict=True)]
        shown = judges.style(images).argmax(1) == style
        result[name] = {"style": round(shown.double().mean().item(), 3), "top5": round(float(np.mean(hits)), 3)}
        leak = scene_leak(odds[name], odds["base"], things, [{concept} for concept in asked], judges.concept_threshold)
        if leak is not None and name != "base":
            result[name] |= {
                "leak": round(leak.log_odds or 0.0, 3),
                "standard_error": round(leak.standard_error or 0.0, 3),
            }
            result[name]["shows"] = describe_leak(leak, [concept["label"] for concept in meta["concepts"]])
        print(name, result[name], flush=True)
    (folder / "result.json").write_text(json.dumps({"caption": caption, "rows": result}, indent=1) + "\n")
    variations(args, folder, words, [meta["concepts"][concept]["label"] for concept in things])
    rows = {name: [one for one, _ in made[:12]] for name, made in drawn.items()}
    labels = [meta["concepts"][concept]["label"] for concept in asked[:12]]
    sheet(rows, labels, title=caption, reference=Image.open(image)).save(folder / "sheet.png")


if __name__ == "__main__":
    main()
