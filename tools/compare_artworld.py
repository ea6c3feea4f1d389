"""Compare the built art world with the reference rendering, style by style.

    python tools/compare_artworld.py [../shared/data/artworld/artworld128.npz]

Prints mean |difference| in grey levels (0..255) over white: median and largest per style, and each picture above 10.
"""

import sys
from pathlib import Path

import numpy as np

from impasto.artworld import load, load_meta

DEFAULT = Path(__file__).parents[2] / "shared/data/artworld/artworld128.npz"
FAR = 10  # grey levels


def main() -> None:
    meta, world = load_meta(), load()
    with np.load(sys.argv[1] if len(sys.argv) > 1 else DEFAULT) as file:
        truth, style_id, concept_id = (file[name] for name in ("images", "style_id", "concept_id"))
    print(f"{'style':27} {'n':>5} {'median':>7} {'largest':>8}")
    for style, name in enumerate(meta["style_names"]):
        rows = np.flatnonzero(style_id == style)
        ours = world.select(styles=[style])
        places = ours.table()[style, concept_id[rows]]
        pictures = ours.rgb()
        difference = np.array(
            [np.abs(pictures[i].astype(int) - truth[row]).mean() for i, row in zip(places, rows, strict=True) if i >= 0]
        )
        print(f"{name:27} {len(difference):5} {np.median(difference):7.3f} {difference.max():8.3f}")
        for row, value in zip(rows[places >= 0], difference, strict=True):
            if value > FAR:
                print(f"    {meta['concepts'][concept_id[row]]['label']}: {value:.1f}")


if __name__ == "__main__":
    main()
