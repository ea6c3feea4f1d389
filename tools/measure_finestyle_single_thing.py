"""Strength and guidance weights of FineStyle for an image of one thing (no data scaling), on secondary styles.

    python tools/measure_finestyle_single_thing.py --base mini-sd15 --styles icon-park game-icons

One training per style by the recipe `finestyle`; eight free concepts at each strength and weights, by the judges.
"""

import argparse
import tempfile
from pathlib import Path

from search_recipe import REFERENCES, references_of

from impasto.compare.references import build
from impasto.config import resolve
from impasto.evaluation import evaluate
from impasto.generation import open_session
from impasto.guidance.config import StyleSemantics
from impasto.judges.model import Judges
from impasto.sampling.png import save_png
from impasto.training.train import train

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
WEIGHTS = ((3.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1.0, 1.0, 2.0), (0.0, 3.0, 0.0))
IMAGES = 8


def measure(base: str, styles: list[str], folder: Path) -> None:
    judges = Judges.load()
    print("style | strength | (lambda1, lambda2, lambda_base) | style probability | top-5")
    for row in references_of(len(REFERENCES)):
        if row["style"] not in styles:
            continue
        reference = build(row, (), 0, "references")
        out = folder / row["style"]
        own = {"image": (reference.image,), "caption": (reference.caption,), "out": out}
        train(resolve("finestyle", base, preview=False, tensorboard=False, precision="bf16", **own))
        for strength in STRENGTHS:
            for weights in WEIGHTS:
                names = dict(zip(("lambda1", "lambda2", "lambda_base"), weights, strict=True))
                rule = StyleSemantics(n1="", n2=reference.words or "", **names)
                session = open_session(base, styles=(f"{out}:{strength}",), guidances=[rule], precision="bf16")
                images = out / f"{strength}-{weights}"
                images.mkdir()
                for i, (image, info) in enumerate(
                    session.sample([(p, i) for i, p in enumerate(reference.prompts[:IMAGES])])
                ):
                    save_png(image, info, images / f"{i:04d}.png")
                found = evaluate(images, row["style"], judges=judges)
                scores = f"{found['style_probability']:.3f} | {found['concept_top5']:.3f}"
                print(f"{row['style']} | {strength} | {weights} | {scores}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--styles", nargs="+", default=["icon-park", "game-icons"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(given.base, given.styles, Path(scratch))
