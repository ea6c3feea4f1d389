"""The numbers and the picture of docs/style-aligned.md, on the embedded base.

    python tools/measure_style_aligned.py --out runs/style-aligned

Round trips (picture -> noise -> picture, conditional only) by steps and refinements; then, per reference, the same six
prompts by the base alone and by StyleAligned with several settings, scored by the judges. Settings are compared on
secondary held-out styles and concepts that are no evaluation concepts; `unifont` (primary) is only reported.
Writes results.json and grid-STYLE.png. Some minutes on one core.
"""

import argparse
import json
from pathlib import Path

import torch

from impasto.artworld import concept_index, load_meta, load_slice, style_index
from impasto.artworld.captions import prompt
from impasto.bases import loader
from impasto.contact_sheet import sheet
from impasto.data.references import read
from impasto.evaluation import evaluate
from impasto.evaluation.samples import read_folder
from impasto.evaluation.truth import true_pictures
from impasto.families.base import Family
from impasto.generation import generate_folder
from impasto.inversion import invert
from impasto.judges.model import Judges
from impasto.reproduce.small_world import spread, words
from impasto.sampling.config import GenerateConfig

ARMS = {
    "base": None,
    "aligned": {},
    "shift 0": {"aligned_shift": 0.0},
    "shift log 8": {"aligned_shift": 2.079},
    "no AdaIN": {"aligned_adain": ()},
    "AdaIN of values too": {"aligned_adain": ("queries", "keys", "values")},
}
RUNS = {"icon-park": tuple(ARMS), "unifont": ("base", "aligned")}
SHOWN = {"unifont": concept_index("rabbit face")}  # as in the demo; else the first reference concept of the style
SCORES = ("style_probability", "style_accuracy", "concept_top5", "style_cosine", "leakage", "clip_t")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/style-aligned"))
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--styles", nargs="*", default=list(RUNS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    family = loader.load(options.base, device="cpu")
    results = {"base": options.base, "base_hash": family.hash, "pictures": {}}
    judges, captions = Judges.load(), {}
    for style in options.styles:
        told = pictures(options.base, style, options.out, judges)
        results["pictures"][style], captions[options.out / f"{style}.png"] = told, told["caption"]
    results["round_trip"] = round_trips(family, captions)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def pictures(base: str, style: str, out: Path, judges: Judges) -> dict:
    """{arm: scores} of six prompts, and the grid."""
    meta, which = load_meta(), style_index(style)
    labels = [concept["label"] for concept in meta["concepts"]]
    drawn = set(load_slice(styles=[which]).concept_id.tolist())
    primary = style in [meta["style_names"][i] for i in meta["split"]["primary_styles"]]
    asked = meta["split"]["evaluation_concepts"] if primary else meta["split"]["reference_concepts"]
    shown = SHOWN.get(style) or next(i for i in meta["split"]["reference_concepts"] if i in drawn)
    concepts = spread([i for i in asked if i in drawn and i != shown], 6)
    reference = out / f"{style}.png"
    true_pictures(which, [shown])[shown].save(reference)
    truths = true_pictures(which, concepts)
    caption, *prompts = (prompt(labels[i], words(which)) for i in (shown, *concepts))
    scores, rows = (
        {"caption": caption, "concepts": [labels[i] for i in concepts]},
        {"true": [truths[i] for i in concepts]},
    )
    for arm in RUNS[style]:
        folder, settings = out / style / arm.replace(" ", "-"), ARMS[arm]
        given = {} if settings is None else {"aligned_to": reference, "reference_caption": caption}
        generate_folder(
            GenerateConfig(
                replace=True, base=base, prompt=tuple(prompts), out=folder, device="cpu", **given, **(settings or {})
            )
        )
        told = evaluate(folder, style, None, reference, labels[shown], judges=judges)
        scores[arm] = {name: told[name] for name in SCORES if name in told}
        rows[arm] = [sample.image for sample in read_folder(folder)]
        print(style, arm, scores[arm], flush=True)
    title = f"StyleAligned, one reference: {caption}"
    sheet(rows, [labels[i] for i in concepts], title=title, reference=read(reference).image).save(
        out / f"grid-{style}.png"
    )
    return scores


@torch.no_grad()
def round_trips(family: Family, captions: dict[Path, str]) -> list[dict]:
    """Relative error of the latents and PSNR of the decoded picture against the decoded latents: means over files."""
    pipe = family.pipeline(**{family.part: family.denoiser})
    size, table = family.card["size"], []
    for steps in (10, 28):
        for refine in (0, 1, 3):
            errors, decibels = [], []
            for file, caption in captions.items():
                z = family.encode_image(read(file).pixels(size))
                cond = family.encode_prompt([caption], pipe=pipe)
                found = invert(family, z, cond, steps, refine=refine)
                call = family.call_arguments(cond, None) | {"latents": found.noise, "num_inference_steps": steps}
                back = pipe(**call, guidance_scale=1.0, height=size, width=size, output_type="latent").images
                errors.append(((back - z).norm() / z.norm()).item())
                away = (family.decode(back).clamp(-1, 1) - family.decode(z).clamp(-1, 1)).square().mean() / 4
                decibels.append(-10 * away.log10().item())
            row = {"steps": steps, "refine": refine, "error": sum(errors) / len(errors)}
            table.append(row | {"psnr": sum(decibels) / len(decibels), "noise_std": found.noise.std().item()})
            print(table[-1], flush=True)
    return table


if __name__ == "__main__":
    main()
