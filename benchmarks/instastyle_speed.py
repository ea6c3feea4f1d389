"""CPU seconds of InstaStyle's first stage: the inversion and 15 objects, batched, one by one, re-inverting for each.

    python benchmarks/instastyle_speed.py --image ref.png --caption "cat, flat icon" --steps 10

The last is what the authors' application does. Process time of one thread, so that a busy machine matters less.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from impasto.bases import loader
from impasto.data.references import read
from impasto.inversion import invert
from impasto.inversion.noise_file import InversionNoise, NoiseInfo
from impasto.methods.instastyle import default_objects, generate_candidates, read_caption


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--caption", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = loader.load(options.base, device="cpu")
    size = int(family.card["size"])
    x, cond = family.encode_image(read(options.image).pixels(size)), family.encode_prompt([options.caption])
    prompts = [read_caption(options.caption).prompt(thing) for thing in default_objects(family)]

    def inverted() -> InversionNoise:
        info = NoiseInfo(family.hash, size, options.steps, options.caption)
        return InversionNoise.of(invert(family, x, cond, options.steps), info)

    ways = {
        "batched": lambda: generate_candidates(family, inverted(), prompts),
        "one by one": lambda: generate_candidates(family, inverted(), prompts, batch=1),
        "re-inverting": lambda: [generate_candidates(family, inverted(), [prompt]) for prompt in prompts],
    }
    inverted()  # loads what is loaded when first used
    least = {name: min(seconds(run) for _ in range(options.rounds)) for name, run in ways.items()}
    result = {"base": options.base, "steps": options.steps, "seconds": {name: round(s, 2) for name, s in least.items()}}
    result["times"] = {name: round(s / least["batched"], 2) for name, s in least.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
