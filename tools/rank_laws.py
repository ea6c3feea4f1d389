"""The laws of a finished sweep (C1), ranked, and how sure the order is.

    python tools/rank_laws.py docs/results/calibration

Score: the harmonic mean of style accuracy and concept top-5, each the mean over the full cells. The same with the pairs
of style and reference drawn with replacement, DRAWS times: its standard deviation, and how often a law is the best.
"""

import argparse
from pathlib import Path

import numpy as np

from impasto.reproduce.calibration import SWEEP
from impasto.reproduce.cells import FILE, read_all
from impasto.reproduce.small_world import SECONDARY

DRAWS = 4000


def harmonic(scores: np.ndarray) -> np.ndarray:
    """[..., pairs, 2] -> [...], of the means over the pairs."""
    style, text = np.moveaxis(scores.mean(-2), -1, 0)
    return 2 * style * text / np.maximum(style + text, 1e-9)


def sweep(folder: Path) -> tuple[list[str], np.ndarray]:
    """The pairs of style and reference, and the full cells' scores [law, pair, (style accuracy, concept top-5)].

    Exits where the sweep is not complete.
    """
    cells = [c for c in read_all(folder / FILE).values() if len(c["spec"]["prompts"]) == SECONDARY["full"][2]]
    own = {(c["arm"], c["unit"]): [c["scores"][n] for n in ("style_accuracy", "concept_top5")] for c in cells}
    units = sorted({unit for arm, unit in own if arm in SWEEP})
    if missing := [f"{arm}: {unit}" for arm in SWEEP for unit in units if (arm, unit) not in own] or not units:
        raise SystemExit(f"{folder}: the sweep is not complete ({missing})")
    return units, np.array([[own[arm, unit] for unit in units] for arm in SWEEP])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    units, scores = sweep(parser.parse_args().folder)
    picks = np.random.default_rng(0).integers(0, len(units), (DRAWS, len(units)))
    drawn = np.stack([harmonic(scores[:, pick]) for pick in picks])
    best = np.bincount(drawn.argmax(1), minlength=len(SWEEP)) / DRAWS
    print("| law | style accuracy | concept top-5 | harmonic mean | drawn anew: sd | the best in |")
    print("|---|---|---|---|---|---|")
    names, means, whole = list(SWEEP), scores.mean(1), harmonic(scores)
    for i in np.argsort(-whole):
        style, text = means[i]
        print(f"| {names[i]} | {style:.3f} | {text:.3f} | {whole[i]:.3f} | {drawn[:, i].std():.3f} | {best[i]:.0%} |")


if __name__ == "__main__":
    main()
