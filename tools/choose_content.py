"""What keeps the content while a style is learnt from one picture: arms on the *secondary* held-out styles.

    python tools/choose_content.py --out docs/results/prior-preservation-mini-sd3.json
    python tools/choose_content.py --arms prior --rate 3e-3 --out X.json      # some arms, other rates
    python tools/choose_content.py --base mini-sd15 --arms plain --targets attention convolution --out Y.json

Each arm trains sd3-sampler's law on one reference with the base's own steps, then draws 24 concepts that are neither
evaluation nor reference concepts, with guidance alone and with reward guidances (see `rewarded`). Judged: style
accuracy and concept top-5, as shares of what the judge gives the true pictures, and of the base's on the same prompts.

    plain        the recipe sd3-sampler
    prior        prior preservation of weight 1 with as many pictures of the base as of the reference
    placement    beside the picture mirrored and shifted copies of it, up to 10 pixels each way
    placement-scaled   the same with copies at 55 to 100 % of the size
    alone        every second caption is the style's words only
    many-N       N different pictures of the style instead of one: what one picture cannot tell
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from choose_settings import SEED, base_scores, concepts_for, pictures, reference_of, secondary_styles
from PIL import Image

from impasto.artworld import load, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import cards, loader
from impasto.config import resolve
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.pretrain.score import judge
from impasto.reproduce.small_world import words
from impasto.sampling.sample import Sampling
from impasto.training.train import train

PRIOR = {"prior_weight": 1.0, "prior_batch": 8}
COPIES = 7
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "one"),
    "prior": (PRIOR, "one"),
    "placement": ({}, "shifted"),
    "placement-scaled": ({}, "scaled"),
    "alone": ({}, "alone"),
    "prior + placement": (PRIOR, "shifted"),
    "prior + alone": (PRIOR, "alone"),
}
"""(settings, what it trains on)."""


def copies(picture: Image.Image, scaled: bool) -> list[Image.Image]:
    """The picture and COPIES placed anew on its own ground, every second one mirrored."""
    rng, found, size = np.random.default_rng(0), [picture], picture.width
    for k in range(COPIES):
        side = int(size * rng.uniform(0.55, 1.0)) if scaled else size
        one = picture.resize((side, side), Image.Resampling.LANCZOS)
        one = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if k % 2 == 0 else one
        low, high = (0, size - side) if scaled else (-10, 10)
        ground = Image.new("RGB", picture.size, picture.getpixel((1, 1)))
        x, y = (int(v) for v in rng.integers(low, high + 1, 2))
        ground.paste(one, (x, y))
        found.append(ground)
    return found


def material(what: str, style: int, concept: int, asked: list[int]) -> list[tuple[Image.Image, str]]:
    """(picture, caption) of what an arm trains on."""
    meta, world, said = load_meta(), load(styles=[style]), words(style)

    def shown(one: int) -> tuple[Image.Image, str]:
        picture = Image.fromarray(world.rgb()[world.index(style, one)])
        return picture, prompt(meta["concepts"][one]["label"], said)

    picture, caption = shown(concept)
    if what in ("shifted", "scaled"):
        return [(one, caption) for one in copies(picture, what == "scaled")]
    if what == "alone":
        return [(picture, caption), (picture, said)]
    if what.startswith("many-"):
        banned = {*asked, concept, *meta["split"]["evaluation_concepts"]}
        free = [c for c in world.concept_id.tolist() if c not in banned]
        more = np.random.default_rng(1).choice(free, int(what.removeprefix("many-")) - 1, replace=False)
        return [(picture, caption), *(shown(int(c)) for c in more)]
    return [(picture, caption)]


def rewarded(base: str, weight: float | None) -> Sampling:
    """B(n) + w [B(y) - B(n)] + weight [S(y) - B(y)], w the base's guidance; None: guidance alone."""
    if weight is None:
        return Sampling(negative="", style_guidance=0.0, base_guidance=0.0)
    w = cards.card(base)["generate"]["guidance"]
    return Sampling(guidance=1.0, negative="", style_guidance=weight - 1, base_guidance=w - 1)


def trial(
    base: str,
    style: int,
    arm: str,
    lr: float,
    weights: list[float],
    judges: Judges,
    folder: Path,
    changes: Mapping[str, Any],
) -> list[dict]:
    """Rows of one arm on one style: without style guidance, and with each weight of it. changes: of its settings."""
    meta, world = load_meta(), load(styles=[style])
    concept, asked = reference_of(world), concepts_for(style, 24)
    settings, what = ARMS.get(arm, ({}, arm))
    files = []
    for i, (picture, caption) in enumerate(material(what, style, concept, asked)):
        files.append((folder / f"{style}-{arm}-{i}.png", caption))
        picture.save(files[-1][0])
    out = folder / f"{style}-{arm}-{lr:g}"
    given = {"image": tuple(file for file, _ in files), "caption": tuple(caption for _, caption in files), "out": out}
    settings = {**settings, **changes, "seed": SEED, "preview": False, "tensorboard": False}
    train(resolve("sd3-sampler", base, lr=lr, **given, **settings))
    prompts = [prompt(meta["concepts"][c]["label"], words(style)) for c in asked]

    def scores(pictures: np.ndarray) -> dict[str, float]:
        return judge(judges, pictures, np.full(len(asked), style), np.array(asked))

    truth = scores(np.stack([world.rgb()[world.index(style, c)] for c in asked]))
    alone = base_scores(base, tuple(prompts), style, tuple(asked), judges)
    rows = []
    for weight in (None, *weights):
        made = scores(pictures(base, prompts, (f"{out}:1",), rewarded(base, weight)))
        style_share = min(1.0, made["style_accuracy"] / max(truth["style_accuracy"], 1e-9))
        kept = min(1.0, made["concept_top5"] / max(alone["concept_top5"], 1e-9))
        rows.append({"style_guidance": weight, "style": style_share, "kept": kept, **made})
    return rows


def main() -> None:
    """Run the arms and write every trial, and the means over the styles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"{', '.join(ARMS)}, many-N")
    parser.add_argument("--rate", type=float, nargs="+", default=[7e-4, 1.4e-3])
    parser.add_argument("--weight", type=float, nargs="*", default=[4.0, 6.0, 8.0])
    parser.add_argument("--steps", type=int, help="the base's own when not given")
    parser.add_argument("--targets", nargs="+", help="layers that are trained; the recipe's when not given")
    parser.add_argument("--styles", nargs="+", help="secondary held-out styles; all four when not given")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    meta, judges = load_meta(), Judges.load()
    styles = secondary_styles(parser, args.styles)
    if unknown := {arm for arm in args.arms if arm not in ARMS and not arm.startswith("many-")}:
        parser.error(f"unknown arms: {sorted(unknown)}; they are {', '.join(ARMS)}, many-N")
    result: dict[str, Any] = {"base": args.base, "base_sha256": loader.load(args.base, device="cpu").hash}
    result |= {"styles": styles, "steps": args.steps, "targets": args.targets, "trials": []}
    changes = {"steps": args.steps, "targets": tuple(args.targets or ())}
    changes = {key: value for key, value in changes.items() if value}
    for arm in args.arms:
        for lr in args.rate:
            with tempfile.TemporaryDirectory() as scratch:
                found = {
                    name: trial(
                        args.base,
                        meta["style_names"].index(name),
                        arm,
                        lr,
                        args.weight,
                        judges,
                        Path(scratch),
                        changes,
                    )
                    for name in styles
                }
            for i, weight in enumerate((None, *args.weight)):
                mean = {key: float(np.mean([rows[i][key] for rows in found.values()])) for key in ("style", "kept")}
                each = {name: rows[i] for name, rows in found.items()}
                row = {"arm": arm, "lr": lr, "style_guidance": weight, **mean, "styles": each}
                result["trials"].append(row)
                print(json.dumps({key: value for key, value in row.items() if key != "styles"}), flush=True)
            with atomic(args.out) as path:
                path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
