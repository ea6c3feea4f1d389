"""Style and text by guidance weights and strength of FineStyle and StyleDrop on a base of masked tokens.

    python tools/choose_guidance.py --arms lora --rate 3e-4 --strengths 1 --style-weights 0 1 2

One scene of three free concepts per secondary style (`measure_finestyle.reference`). Arms: kv (recipe finestyle-kv,
boxes given), lora (recipe finestyle, boxes given), styledrop (the first round of the recipe styledrop). Each is trained
once and sampled by every strength and weight of the style, with free concepts that the scene does not show as prompts.

    style         share of images that the style judge puts into the style
    probability   the judge's mean probability of the style
    cosine        mean cosine of the style judge's features with those of the true image of the same concept and style
    top5          share whose concept is among the concept judge's five first

An arm and style that the JSON file (docs/results/guidance-mini-muse.json) has for this base, these steps and this rate
is not run again. OUT/BASE-STEPS-RATE/STYLE/ARM.png shows the images.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from measure_finestyle import reference
from PIL import Image

from impasto.artworld import free_concepts, load_meta, spread
from impasto.bases import loader
from impasto.config import resolve
from impasto.contact_sheet import sheet
from impasto.evaluation.truth import true_pictures
from impasto.files import atomic
from impasto.generation import StrengthSessions, open_session
from impasto.guidance.config import PRESETS, StyleSemantics
from impasto.judges.model import Judges
from impasto.styles.parts import has_weights
from impasto.training.train import train

ARMS: dict[str, dict[str, Any]] = {
    "kv": {"recipe": "finestyle-kv"},
    "lora": {"recipe": "finestyle"},
    "styledrop": {"recipe": "styledrop", "rounds": 1, "select": "human"},
}


def weights_of(arm: str, style: float, scale: float) -> tuple[float, float, float]:
    """(lambda1, lambda2, lambda_base) of the arm's preset with another weight of the style."""
    _, semantics, base = PRESETS["styledrop" if arm == "styledrop" else "finestyle"](scale)
    return style, semantics, base


def train_arm(arm: str, base: str, scene: tuple[Path, str, list[int], str, str], args: argparse.Namespace) -> Path:
    """The style folder of an arm."""
    image, caption, _, words, boxes = scene
    out, own = image.parent / arm, dict(ARMS[arm])
    recipe = own.pop("recipe")
    own |= {"style_words": words, "method.objects": ("cat",)} if arm == "styledrop" else {
        "method.style_words": words, "method.boxes": boxes
    }  # fmt: skip
    own |= {"steps": args.steps} | ({"lr": args.rate} if args.rate else {})
    own |= {"image": (image,), "caption": (caption,), "out": out, "preview": False, "tensorboard": False}
    if not has_weights(out):
        train(resolve(recipe, base, precision=args.precision, **own))
    return out


def measure(arm: str, name: str, args: argparse.Namespace, judges: Judges) -> list[dict[str, Any]]:
    """A row per strength and weight, the base's first."""
    meta = load_meta()
    style = meta["style_names"].index(name)
    folder = args.out / name
    scene = reference(folder, style, 0)
    pool = [c for c in free_concepts() if c in set(meta["drawn"][style]) and c not in scene[2]]
    asked = spread(pool, args.concepts)
    prompts = [(f"{meta['concepts'][c]['label']}, {scene[3]}", i) for i, c in enumerate(asked)]
    trained = train_arm(arm, args.base, scene, args)
    plain = open_session(args.base, precision=args.precision)
    styled = StrengthSessions(args.base, trained, precision=args.precision)
    true = true_pictures(style, asked)
    truth = judges.style_features([true[c] for c in asked])
    rows, drawn = [], {}
    for strength, own in [(0.0, 0.0), *((s, w) for s in args.strengths for w in args.style_weights)]:
        rule = StyleSemantics(*weights_of(arm, own, plain.sampling.guidance or 1.0), n1="", n2="")
        session = styled.at(strength).with_guidances([rule]) if strength else plain
        images = [image for image, _ in session.sample(prompts)]
        top5 = judges.concept(images).topk(5).indices.tolist()
        seen, features = judges.style(images), judges.style_features(images)
        row = {
            "arm": arm,
            "style name": name,
            "strength": strength,
            "weights": list(rule.weights),
            "style": round((seen.argmax(1) == style).double().mean().item(), 3),
            "probability": round(seen[:, style].mean().item(), 3),
            "cosine": round((features * truth).sum(1).mean().item(), 3),
            "top5": round(sum(c in found for c, found in zip(asked, top5, strict=True)) / len(asked), 3),
        }
        rows.append(row)
        drawn["base" if not strength else f"{strength:g}, {own:g}"] = images
        print(row, flush=True)
    labels = [meta["concepts"][c]["label"] for c in asked]
    made = sheet(drawn, labels, title=f"{arm}: {scene[1]}", reference=Image.open(scene[0]))
    made.save(folder / f"{arm}.png")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-muse")
    parser.add_argument("--styles", nargs="+", default=["icon-park", "symbola"])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, help="learning rate; the base's card's when not given")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument(
        "--style-weights",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 1.0, 2.0],
        help="lambda1 of FineStyle, lambda_A of StyleDrop",
    )
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--json", type=Path, default=Path("docs/results/guidance-mini-muse.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    secondary = {load_meta()["style_names"][s] for s in load_meta()["split"]["secondary_styles"]}
    if unknown := set(args.styles) - secondary:
        parser.error(f"not secondary held-out styles: {sorted(unknown)}; they are {sorted(secondary)}")
    judges, base = Judges.load(), loader.load(args.base).hash
    known = json.loads(args.json.read_text()) if args.json.is_file() else []
    args.out /= f"{base[:8]}-{args.steps}-{args.rate or 'card'}"
    for name in args.styles:
        for arm in args.arms:
            key = {"base_sha256": base, "arm": arm, "style name": name, "steps": args.steps, "rate": args.rate}
            if any(row.items() >= key.items() for row in known):
                continue
            known += [key | row for row in measure(arm, name, args, judges)]
            with atomic(args.json) as temporary:
                temporary.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
