"""How near a base comes to a reference by its caption alone, for styles that it was pretrained on and that it was not.

    python tools/measure_known_style.py [--base mini-sd15] [--out docs/results/known-style-mini-sd15.json]

Per style three things: "{label}, {style description}" is sampled twice by the base alone, and the style judge's cosine
with the true image is placed between unrelated images (0) and the true image's own crops (1), as
`training.base_previews` does. The primary held-out styles are left out. From the table follows `KNOWN` there.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from impasto.artworld import free_concepts, load_meta
from impasto.evaluation.truth import true_pictures
from impasto.generation import generate
from impasto.judges.model import Judges
from impasto.reproduce.image_sets import caption
from impasto.training.base_previews import nearness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    meta, judges = load_meta(), Judges.load()
    primary, train = set(meta["split"]["primary_styles"]), set(meta["split"]["train_styles"])
    known = sorted(set(range(len(meta["style_names"]))) - primary)
    rows = {}
    for style in known:
        truths = true_pictures(style, free_concepts())
        chosen = list(truths)[:: max(1, len(truths) // 3)][:3]
        if not chosen:
            continue
        prompts = [caption("styled", style, concept) for concept in chosen]
        images = [image for image, _ in generate(args.base, prompts, count=2)]
        found = [nearness(truths[concept], images[2 * i : 2 * i + 2], judges) for i, concept in enumerate(chosen)]
        name = meta["style_names"][style]
        rows[name] = {
            "trained": style in train,
            "nearness": round(mean(found), 3),
            "each": [round(x, 3) for x in found],
        }
        print(name, rows[name], flush=True)
    out = args.out or Path(f"docs/results/known-style-{args.base}.json")
    out.write_text(json.dumps({"base": args.base, "styles": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
