"""What a style leaves on a white ground: with the adapter at all noise levels, above sigma .5, or at none.

    python tools/measure_ground.py RUN [--base mini-sd3]

Ground are the pixels that are lighter than 225 in all rows. Printed are their mean difference from white and their
standard deviation, in grey levels; the sheet is written to RUN/ground.png.
"""

import argparse
from pathlib import Path

import numpy as np

from impasto.contact_sheet import sheet
from impasto.generation import open_session
from impasto.sampling.sample import Sampling
from impasto.styles.defaults import THINGS, prompts_of_others
from impasto.styles.metadata import read_about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", default="mini-sd3")
    args = parser.parse_args()
    prompts = prompts_of_others(read_about(args.run).captions, len(THINGS))
    limits = {"all levels": 0.0, "sigma above .5": 0.5, "never (the base)": 2.0}
    rows = {name: generate_above(args.base, args.run, prompts, limit) for name, limit in limits.items()}
    pixels = {name: np.stack([np.asarray(image, dtype=float) for image in images]) for name, images in rows.items()}
    ground = np.min([one.min(-1) for one in pixels.values()], 0) > 225
    for name, one in pixels.items():
        print(f"{name:18} {255 - one[ground].mean():.2f} from white, spread {one[ground].std():.2f}")
    sheet(rows, [prompt.partition(",")[0] for prompt in prompts], cell=160).save(args.run / "ground.png")


def generate_above(base: str, run: Path, prompts: list[str], sigma: float) -> list:
    """Images with the adapter where the noise share is above `sigma`; rectified flows only."""
    session = open_session(base, styles=[f"{run}:1"], sampling=Sampling(style_guidance=0, base_guidance=0, negative=""))
    forward = session.pipe.transformer.forward

    def switched(*inputs, timestep, **more):
        on = timestep.flatten()[0].item() / 1000 > sigma
        (session.pipe.enable_lora if on else session.pipe.disable_lora)()
        return forward(*inputs, timestep=timestep, **more)

    session.pipe.transformer.forward = switched
    return [image for image, _ in session.sample([(prompt, 7) for prompt in prompts])]


if __name__ == "__main__":
    main()
