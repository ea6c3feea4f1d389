"""Style guidance beside strength: how much style, and how much of the content is kept, at several weights of each.

    python scripts/measure_style_guidance.py --out docs/results/style-guidance.json

One reference of each *secondary* held-out style, trained once by `--recipe` with the base's own settings, then asked
for 24 concepts that are neither evaluation nor reference concepts, by the judges: the base alone, the style at several
strengths, and at several style guidances (docs/style-guidance.md).
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from impasto import families
from impasto.artworld import load_meta, style_index
from impasto.artworld.judges import Judges
from impasto.config import resolve
from impasto.evaluate.labels import Labels, concepts_of
from impasto.families.base import quiet
from impasto.generate import Sampling, generate
from impasto.paths import atomic
from impasto.pretrain.score import judge
from impasto.reproduce.small_world import SmallWorld, picture
from impasto.train import train

SEED = 7


def main() -> None:
    """Train, draw, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--recipe", default="sd3-sampler")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--styles", nargs="+", help="secondary held-out styles; all four when not given")
    parser.add_argument("--strength", type=float, nargs="*", default=[0.6, 1.0, 1.5, 2.0])
    parser.add_argument("--weight", type=float, nargs="*", default=[1.0, 2.0, 4.0, 6.0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    units: dict[str, dict] = {}
    for unit in SmallWorld().units("full", "secondary").values():
        units.setdefault(unit["style"], unit)  # its first reference
    if unknown := set(args.styles or ()) - set(units):
        parser.error(f"not secondary held-out styles: {sorted(unknown)}; they are {sorted(units)}")
    judges, labels, rows = Judges.load(), Labels.from_meta(load_meta()), []
    for style in args.styles or units:
        prompts = units[style]["prompts"]
        ids = np.array(concepts_of(prompts, labels))
        styles = np.full(len(ids), style_index(style))
        with tempfile.TemporaryDirectory() as scratch, quiet():
            reference, out = Path(scratch) / "reference.png", Path(scratch) / "style"
            picture(style, units[style]["reference"]).save(reference)
            own = {"image": (reference,), "caption": (units[style]["caption"],), "out": out, "seed": SEED}
            own |= {} if args.lr is None else {"lr": args.lr}
            train(resolve(args.recipe, args.base, **own, preview=False, tensorboard=False))
            for strength, weight in [(0, None), *((s, None) for s in args.strength), *((1, w) for w in args.weight)]:
                chosen = (f"{out}:{strength:g}",) if strength else ()
                sampling = Sampling(style_guidance=weight)
                drawn = generate(args.base, prompts, styles=chosen, seed=SEED, sampling=sampling)
                scores = judge(judges, np.stack([np.asarray(image) for image, _ in drawn]), styles, ids)
                rows.append({"style": style, "strength": strength, "style_guidance": weight, **scores})
                print(json.dumps(rows[-1]), flush=True)
    told = {"base": args.base, "base_sha256": families.load(args.base, device="cpu").hash, "recipe": args.recipe}
    told |= {"lr": args.lr, "prompts_per_style": len(next(iter(units.values()))["prompts"]), "seed": SEED, "rows": rows}
    with atomic(args.out) as path:
        path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
