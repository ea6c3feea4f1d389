"""How near inversions of secondary references come back: dB by steps and fixed-point iterations.

    python tools/measure_inversion.py --base mini-sd3 --settings 50:0 28:1 50:1

Six references of the four secondary styles, on white and on coloured grounds, of the built art world: ten seconds a
setting.
"""

import argparse

import torch
from PIL import Image

from impasto.artworld import load, style_index
from impasto.artworld.captions import prompt
from impasto.artworld.colours import NAMED
from impasto.bases import loader
from impasto.data.references import read
from impasto.files import cache_dir
from impasto.inversion import invert
from impasto.invert import psnr, reconstruct
from impasto.methods.instastyle import grid
from impasto.reproduce.small_world import words

CASES = (
    *(("icon-park", "grinning face", "white"), ("icon-park", "cat", "navy"), ("symbola", "castle", "hot pink")),
    *(("symbola", "guitar", "white"), ("game-icons", "bus", "yellow"), ("ph", "crown", "sky blue")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--settings", nargs="+", default=["50:0", "28:1", "50:1"], help="steps:iterations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = loader.load(options.base, device="cpu")
    size = int(family.card["size"])
    folder = cache_dir("reproduce", "inversion")
    folder.mkdir(parents=True, exist_ok=True)
    for setting in options.settings:
        steps, refine = map(int, setting.split(":"))
        found = []
        for style, label, ground in CASES:
            world = load(styles=[style], concepts=[label])
            Image.fromarray(world.rgb(NAMED[ground])[0]).save(folder / "reference.png")
            x = family.encode_image(read(folder / "reference.png", size).pixels(size))
            condition = family.encode_prompt([prompt(label, words(style_index(style)))])
            with torch.no_grad():
                levels = grid(family, steps, (x.shape[-2], x.shape[-1]))
                path = invert(family, x, condition, levels=levels, refine=refine)
                found.append(psnr(reconstruct(family, path, condition), family.decode(x)))
        print(
            f"{steps} steps, {refine} iterations: {', '.join(f'{decibels:.1f}' for decibels in found)} dB", flush=True
        )


if __name__ == "__main__":
    main()
