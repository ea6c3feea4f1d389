"""The first stage of InstaStyle as a contact sheet: one reference, its reconstruction, and objects from its noise.

    python tools/show_instastyle.py --style icon-park --out runs/instastyle
    python tools/show_instastyle.py --style symbola --ground 40 60 110 --out runs/instastyle

The reference is a true image of a secondary held-out style on white, or on a coloured ground that the caption does not
name. Rows: 15 objects at guidance 2.5 from the inversion noise, and the same from one Gaussian noise (by all steps).
Beside the sheet, results.json: for both rows the mean cosine of the style judge's features with the reference, the
share of images whose object is among the concept judge's five first, the mean difference of the border from the
reference's (0 to 255) and the seconds of the 15 images. About a minute a base on one idle core. With --run the same of
a finished run of the recipe instastyle, without a random share.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image

from impasto.artworld import concept_index, load, load_meta, style_index
from impasto.artworld.captions import prompt
from impasto.bases import loader
from impasto.contact_sheet import sheet
from impasto.evaluation.paired import ground
from impasto.evaluation.samples import to_tensor
from impasto.files import atomic
from impasto.generation import generate
from impasto.inversion import kind_of, noise_file
from impasto.inversion.noise_file import InversionNoise
from impasto.invert import invert_image
from impasto.judges.model import Judges
from impasto.methods.instastyle import default_objects, generate_candidates, read_caption
from impasto.noise.random import generator
from impasto.reproduce.small_world import words
from impasto.sampling.sample import Sampling

SEED = 5


def reference_of(style: str, ground: tuple[int, int, int], label: str | None) -> tuple[Image.Image, str]:
    """A true image of the style, of `label` or the first reference concept that is drawn in it, and its label."""
    meta, world = load_meta(), load(styles=[style])
    drawn = set(world.concept_id.tolist())
    label = label or next(meta["concepts"][c]["label"] for c in meta["split"]["reference_concepts"] if c in drawn)
    return Image.fromarray(world.rgb(ground)[world.index(style, label)]), label


def measure(judges: Judges, images: list[Image.Image], objects: tuple[str, ...], reference: Image.Image) -> dict:
    top5 = judges.concept(images).argsort(descending=True)[:, :5].tolist()
    features = judges.style_features([reference, *images])
    found = [concept_index(label) in row for label, row in zip(objects, top5, strict=True)]
    error = ground(to_tensor(images), to_tensor([reference])).mean().item()
    return {
        "style_cosine": round(float((features[1:] @ features[0]).mean()), 3),
        "concept_top5": round(sum(found) / len(found), 3),
        "ground_error": round(error, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--style", default="icon-park")
    parser.add_argument("--object", help="what the reference shows; a reference concept of the style by default")
    parser.add_argument("--objects", nargs="+", help="instead of the method's own")
    parser.add_argument("--run", type=Path, help="a finished run of the recipe instastyle on this reference")
    parser.add_argument("--ground", type=int, nargs=3, default=(255, 255, 255), help="its ground, red green blue")
    parser.add_argument("--until", type=float, help="terminal timestep of 0 to 1000")
    parser.add_argument("--refine", type=int, default=0, help="fixed-point iterations of each inversion step")
    parser.add_argument("--out", type=Path, default=Path("runs/instastyle"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = f"{options.base}-{options.style}-{'-'.join(map(str, options.ground))}"
    name += "" if options.until is None else f"-{options.until:g}"
    name += f"-refine-{options.refine}" if options.refine else ""
    folder, kind = options.out / name, {"until": options.until, "refine": options.refine, "device": "cpu"}
    folder.mkdir(parents=True, exist_ok=True)
    image, label = reference_of(options.style, tuple(options.ground), options.object)
    image.save(folder / "reference.png")
    caption = prompt(label, words(style_index(options.style)))
    results = {
        "caption": caption,
        "inversion": invert_image(options.base, folder / "reference.png", caption, out=folder, **kind),
    }

    family = loader.load(options.base, device="cpu")
    noise = noise_file.read(folder / noise_file.NOISE)
    objects = tuple(options.objects or default_objects(family))
    prompts = [read_caption(caption).prompt(thing) for thing in objects]
    gaussian = torch.randn(noise.noise.shape, generator=generator(SEED, 0, "gaussian"))
    rows, judges = {}, Judges.load()
    levels = kind_of(family).levels(family, noise.info.steps, (gaussian.shape[-2], gaussian.shape[-1]))
    starts = {"inversion noise": noise, "Gaussian noise": InversionNoise(gaussian, levels, noise.info)}
    if options.run:
        sampling = Sampling(batch=len(prompts))
        refined = generate(options.base, prompts, styles=[str(options.run)], sampling=sampling, noise_random=0.0)
        rows["refined"] = [picture for picture, _ in refined]
        results["refined"] = measure(judges, rows["refined"], objects, image)
    for row, given in starts.items():
        start = time.perf_counter()
        rows[row] = generate_candidates(family, given, prompts)
        seconds = round(time.perf_counter() - start, 1)
        results[row] = measure(judges, rows[row], objects, image) | {"seconds": seconds}
    back = Image.open(folder / results["inversion"]["reconstruction"]).convert("RGB")
    shown = {
        "inversion noise": [image, back, *rows["inversion noise"]],
        "Gaussian noise": [None, None, *rows["Gaussian noise"]],
    }
    if options.run:
        shown["refined"] = [None, None, *rows["refined"]]
    title = f"{options.base}: {caption}"
    sheet(shown, ["reference", "reconstruction", *objects], wrap=9, title=title).save(folder / "sheet.png")
    with atomic(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
