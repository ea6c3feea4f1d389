"""A trained style through every export and back: the largest difference of its pictures, in grey levels.

    python tools/check_exports.py runs/demo/style-friendly --out docs/results/exports-mini-sd3.json

Each format is exported, imported into a new style folder, and drawn with the prompts and seeds of the style itself.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from impasto.files import atomic
from impasto.generation import generate
from impasto.sampling.sample import Sampling
from impasto.styles.convert import export_style, import_style

PROMPTS = ["a rocket in that style", "a cactus in that style", "a hamburger in that style"]


def pictures(base: str, style: Path | None, steps: int) -> np.ndarray:
    """uint8 [n, h, w, 3] of PROMPTS, seed 0."""
    styles, plain = [f"{style}:1"] if style else [], Sampling(steps, negative="", style_guidance=0.0, base_guidance=0.0)
    drawn = generate(base, PROMPTS, styles=styles, seed=0, sampling=plain)
    return np.stack([np.asarray(image) for image, _ in drawn]).astype(np.int16)


def main() -> None:
    """Export, import, draw, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("style", type=Path)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    own = pictures(args.base, args.style, args.steps)
    result = {"base": args.base, "pictures": len(own), "steps": args.steps, "formats": {}}
    result["without the style"] = int(abs(own - pictures(args.base, None, args.steps)).max())
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("diffusers", "kohya", "comfyui"):
            file, back = Path(scratch) / f"{name}.safetensors", Path(scratch) / name
            export_style(args.style, name, file, base=args.base)
            import_style(file, back, base=args.base)
            result["formats"][name] = int(abs(own - pictures(args.base, back, args.steps)).max())
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
