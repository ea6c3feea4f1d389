"""What a training may watch itself by, tried on true images of the secondary styles; the judges are beside it only.

style  AUC of the cosine with a reference: other concepts in its style against other concepts in other styles
text   share of true images whose own prompt is first among eight (chance .125): by the small CLIP's cosine, and by the
       base's denoising error (`evaluation.base_text`)

    python tools/measure_rulers.py --out docs/results/compare/rulers.json
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from impasto.artworld import load, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import loader
from impasto.data.references import to_tensor
from impasto.evaluation.base_text import text_by_base
from impasto.evaluation.encoders import Encoder, load_encoder
from impasto.evaluation.validity import unrelated_images
from impasto.files import atomic
from impasto.judges.model import Judges

REFERENCES, SETS, CHOICES = 6, 2, 8


@torch.no_grad()
def statistics(encoder: Encoder, images: Sequence[Image.Image]) -> Tensor:
    """Unit vectors [n, d]: mean and deviation of a CLIP's patch tokens after every layer, standardised by unrelated
    images (the statistics that AdaIN transfers)."""

    def raw(some: Sequence[Image.Image]) -> Tensor:
        pixels = encoder.processor([image.convert("RGB") for image in some], return_tensors="pt")["pixel_values"]
        layers = encoder.model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return torch.cat([part for layer in layers for part in (layer[:, 1:].mean(1), layer[:, 1:].std(1))], 1)

    usual = raw(unrelated_images())
    return normalize((raw(images) - usual.mean(0)) / usual.std(0).clamp_min(1e-6), dim=-1)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a positive's value is above a negative's), ties half."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def first(scores: Tensor) -> float:
    """Share of rows of [n, n] whose largest value is on the diagonal."""
    return (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()


def text_rows(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Unit vectors [n, d] of texts."""
    rows = encoder.texts(texts)
    assert rows is not None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base", default="mini-sd15")
    args = parser.parse_args()
    torch.set_num_threads(1)
    meta, rng = load_meta(), np.random.default_rng(0)
    secondary = meta["split"]["secondary_styles"]
    world = load(styles=[*secondary, *meta["split"]["train_styles"][:6]], concepts=meta["split"]["reference_concepts"])
    keep = np.flatnonzero(np.isin(world.style_id, secondary) | (np.arange(len(world)) % 4 == 0))
    images = {int(row): Image.fromarray(pixels) for row, pixels in zip(keep, world.rgb()[keep], strict=True)}
    encoder, judges, family = load_encoder(), Judges.load(), loader.load(args.base, precision="bf16")
    shown = list(images.values())
    rulers = {
        "CLIP, image embedding": encoder.images(shown),
        "CLIP, statistics of patch tokens": statistics(encoder, shown),
        "style judge (chooses nothing)": judges.style_features(shown),
    }
    styles, concepts = world.style_id[keep], world.concept_id[keep]
    found: dict = {"style": {name: {} for name in rulers}, "text": {}}
    for name, features in rulers.items():
        for style in secondary:
            values = []
            for i in rng.choice(np.flatnonzero(styles == style), REFERENCES, replace=False):
                cosine, others = (features @ features[i]).numpy(), concepts != concepts[i]
                values.append(auc(cosine[others & (styles == style)], cosine[others & (styles != style)]))
            found["style"][name][meta["style_names"][style]] = round(float(np.mean(values)), 3)
    for style in secondary:
        words, own = meta["styles"][style]["descriptions"][0], np.flatnonzero(styles == style)
        by: dict[str, Callable[[list[Image.Image], list[str]], Tensor]] = {
            "CLIP": lambda some, texts: encoder.images(some) @ text_rows(encoder, texts).T,
            "base": lambda some, texts: text_by_base(
                family,
                torch.cat([family.encode_image(to_tensor(image)) for image in some]),
                family.encode_prompt(texts),
            ),
        }
        row = found["text"].setdefault(meta["style_names"][style], {})
        for name, scores in by.items():
            started, values = time.process_time(), []
            for _ in range(SETS):
                chosen = rng.choice(own, CHOICES, replace=False)
                texts = [prompt(meta["concepts"][concepts[i]]["label"], words) for i in chosen]
                values.append(first(scores([shown[i] for i in chosen], texts)))
            row[name] = round(float(np.mean(values)), 3)
            seconds = (time.process_time() - started) / SETS
            print(f"{meta['style_names'][style]}, {name}: {row[name]}, {seconds:.1f} CPU s a set", flush=True)
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        with atomic(args.out) as file:
            file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
