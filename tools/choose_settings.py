"""Learning rate and steps of an embedded base, chosen once on one recipe (`sd3-sampler`), and shared by all recipes.

    python tools/choose_settings.py --base mini-sd3 --out docs/results/settings-mini-sd3.json
    python tools/choose_settings.py --base mini-muse --recipe cosine-mask --adapter styledrop \\
        --lr 4e-3 1e-2 --out docs/results/settings-mini-muse-styledrop.json

Chosen on the four *secondary* held-out styles and on core concepts that are neither evaluation nor reference concepts;
the primary held-out styles and the evaluation concepts are never looked at. Rule: the largest mean over styles of
2 s k / (s + k), with s = style accuracy as a share of what the judge gives the true pictures, and k = concept top-5 as
a share of the base's on the same prompts (both at most 1). Needs the built art world (`impasto artworld build`).
Guidance is chosen before, by choose_sampling.py.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
from PIL import Image

from impasto.artworld import ArtWorld, free_concepts, load, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import loader
from impasto.config import resolve
from impasto.files import atomic
from impasto.generation import generate
from impasto.judges.model import Judges
from impasto.pretrain.score import judge
from impasto.reproduce.small_world import spread, words
from impasto.sampling.sample import Sampling
from impasto.training.train import train

SEED = 7


def concepts_for(style: int, n: int) -> list[int]:
    """`n` core concepts, known everywhere, neither evaluation nor reference concepts, and drawn in `style`."""
    drawn = set(load(styles=[style]).concept_id.tolist())
    free = [c for c in free_concepts() if c in drawn]
    return spread(free, min(n, len(free)))


def reference_of(world: ArtWorld) -> int:
    """The first reference concept that a style's pictures have."""
    drawn = set(world.concept_id.tolist())
    return next(c for c in load_meta()["split"]["reference_concepts"] if c in drawn)


def secondary_styles(parser: argparse.ArgumentParser, asked: list[str] | None) -> list[str]:
    """The styles asked for, all secondary ones when none is; the parser's error where one is not."""
    meta = load_meta()
    secondary = [meta["style_names"][s] for s in meta["split"]["secondary_styles"]]
    if unknown := set(asked or ()) - set(secondary):
        parser.error(f"not secondary held-out styles: {sorted(unknown)}; they are {secondary}")
    return asked or secondary


def pictures(
    base: str, prompts: list[str], styles: tuple[str, ...] = (), sampling: Sampling | None = None
) -> np.ndarray:
    """uint8 [n, 128, 128, 3] as `impasto generate` draws them."""
    plain = Sampling(negative="", style_guidance=0.0, base_guidance=0.0)
    drawn = generate(base, prompts, styles=styles, seed=SEED, sampling=sampling or plain)
    return np.stack([np.asarray(image) for image, _ in drawn])


@cache
def base_scores(base: str, prompts: tuple[str, ...], style: int, asked: tuple[int, ...], judges: Judges) -> dict:
    """The base alone on the prompts of a style's trials: the same for all of them."""
    return judge(judges, pictures(base, list(prompts)), np.full(len(asked), style), np.array(asked))


def trial(
    base: str, recipe: str, style: int, settings: Mapping[str, Any], judges: Judges, n: int, folder: Path
) -> dict[str, float]:
    """One reference of `style`, trained by the recipe with settings, and scored beside the base and the truth."""
    meta, world = load_meta(), load(styles=[style])
    concept, asked = reference_of(world), concepts_for(style, n)
    reference = folder / f"{style}.png"
    if not reference.exists():
        Image.fromarray(world.rgb()[world.index(style, concept)]).save(reference)
    caption, *prompts = (prompt(meta["concepts"][c]["label"], words(style)) for c in (concept, *asked))
    out = folder / "-".join(str(value) for value in (style, *settings.values()))
    given = {"image": (reference,), "caption": (caption,), "out": out, "preview": False, "tensorboard": False}
    train(resolve(recipe, base, seed=SEED, **settings, **given))
    ids, styles = np.array(asked), np.full(len(asked), style)
    made = judge(judges, pictures(base, prompts, (f"{out}:1",)), styles, ids)
    alone = base_scores(base, tuple(prompts), style, tuple(asked), judges)
    truth = judge(judges, np.stack([world.rgb()[world.index(style, c)] for c in asked]), styles, ids)
    s = min(1.0, made["style_accuracy"] / max(truth["style_accuracy"], 1e-9))
    k = min(1.0, made["concept_top5"] / max(alone["concept_top5"], 1e-9))
    return {"style": s, "kept": k, "score": harmonic_mean([s, k]), **{f"raw_{a}": b for a, b in made.items()}}


def main() -> None:
    """Run the grid and write every trial, and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--recipe", default="sd3-sampler")
    parser.add_argument("--adapter", help="in place of the recipe's")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[75, 150, 300])
    parser.add_argument("--styles", nargs="+", help="secondary held-out styles; all four when not given")
    parser.add_argument("--concepts", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    meta, judges = load_meta(), Judges.load()
    styles = secondary_styles(parser, args.styles)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for lr, steps in product(args.lr, args.steps):
            settings = {"lr": lr, "steps": steps} | ({"adapter": args.adapter} if args.adapter else {})
            found = {
                style: trial(
                    args.base,
                    args.recipe,
                    meta["style_names"].index(style),
                    settings,
                    judges,
                    args.concepts,
                    Path(scratch),
                )
                for style in styles
            }
            mean = {key: float(np.mean([row[key] for row in found.values()])) for key in ("style", "kept", "score")}
            rows.append({**settings, **mean, "styles": found})
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "styles"}), flush=True)
    best = max(rows, key=lambda row: row["score"])
    result = {
        "base": args.base,
        "recipe": args.recipe,
        "base_sha256": loader.load(args.base, device="cpu").hash,
        "trials": rows,
        "chosen": {"lr": best["lr"], "steps": best["steps"]},
    }
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["chosen"]))


if __name__ == "__main__":
    main()
