"""What style words that a base never met do to its content: concept top-5 of the base alone, by the concept judge.

    python tools/measure_words.py --out docs/results/words-mini-sd3.json

Every wording below was made up for this, or is that of a train style; the things are neither evaluation nor reference
concepts. A base that takes "and a" for a list of things draws scattered shreds under the wordings with a list.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from impasto.artworld import free_concepts, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import loader
from impasto.files import atomic
from impasto.generation import generate
from impasto.judges.model import Judges
from impasto.pretrain.score import judge
from impasto.reproduce.small_world import spread

WORDS = {
    "no style": (None,),
    "a train style": ("clean flat vector emoji with plain solid colours",),
    "never met": ("scratchy charcoal sketch with smudged shading", "glossy enamel badge with raised rims"),
    "never met, and a": (
        "scratchy charcoal sketch with smudged shading and a torn corner",
        "glossy enamel badge with raised rims and a brass backing",
    ),
    "never met, a list": (
        "scratchy charcoal sketch, smudged shading and specks",
        "glossy enamel badge, raised rims and scratches",
    ),
}
SEED = 11


def main() -> None:
    """Draw and judge every wording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--things", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    meta, judges = load_meta(), Judges.load()
    things = spread(sorted(free_concepts()), args.things)
    labels = [meta["concepts"][c]["label"] for c in things]
    found = {}
    for name, wordings in WORDS.items():
        of = [wordings[i % len(wordings)] for i in range(len(labels))]
        prompts = [label if words is None else prompt(label, words) for label, words in zip(labels, of, strict=True)]
        pictures = np.stack([np.asarray(image) for image, _ in generate(args.base, prompts, seed=SEED)])
        told = judge(judges, pictures, np.zeros(len(things), int), np.array(things))
        found[name] = {key: round(told[key], 4) for key in ("concept_top1", "concept_top5")}
        print(json.dumps({"words": name, **found[name]}), flush=True)
    sha = loader.load(args.base, device="cpu").hash
    result = {"base": args.base, "base_sha256": sha, "things": labels, "words": WORDS, "found": found}
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
