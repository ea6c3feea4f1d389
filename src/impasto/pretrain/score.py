"""Scores of a base model by the judges, and its sample grid; for reporting only.

500 random prompts "{label}, {style description}" of train style x known concept, the pipeline's own sampling, seed 0;
and scenes of two and of three objects. Each share is given with the judges' share on the true images.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import ArtWorld, load_meta
from impasto.artworld.captions import prompt, scene_caption
from impasto.artworld.scenes import compose
from impasto.judges.model import Judges
from impasto.judges.training import held_out

STEPS, GUIDANCE = 28, 4.0
SCENES = 48  # prompts of each size
GRID_STYLES = ("twemoji", "noto-v1", "openmoji", "fluent-emoji-high-contrast", "emojione-v1", "openmoji-black")
GRID_THINGS = ("rocket", "penguin", "hamburger", "bicycle", "cactus", "tram", "monkey face", "guitar", "sailboat",
               "mushroom", "camera", "Christmas tree")  # fmt: skip


def sample_images(
    pipe: Any,
    prompts: Sequence[str],
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 24,
    progress: Callable[[int, int], None] | None = None,
    call: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """uint8 [n, 128, 128, 3]; image i starts from torch.Generator("cpu").manual_seed(seed + i).

    call: further arguments of the pipeline, which may be steps of its own.
    """
    pipe.set_progress_bar_config(disable=True)
    out = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(some))]
        settings = {"height": 128, "width": 128, "num_inference_steps": steps, "guidance_scale": guidance}
        pictures = pipe(some, generator=generators, output_type="np", **(settings | dict(call or {}))).images
        out.append(np.round(np.asarray(pictures) * 255).astype(np.uint8))
        if progress:
            progress(start + len(some), len(prompts))
    return np.concatenate(out)


def tensor(rgb: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255


def random_cells(world: ArtWorld, n: int, seed: int) -> np.ndarray:
    """Indices [n] of random images of `world`."""
    return np.random.default_rng(seed).integers(len(world), size=n)


def judge(judges: Judges, rgb: np.ndarray, styles: np.ndarray, concepts: np.ndarray) -> dict[str, float]:
    """The means of `judged` over the images."""
    return means(judged(judges, rgb, styles, concepts))


def means(rows: Mapping[str, np.ndarray], where: np.ndarray | slice = slice(None)) -> dict[str, float]:
    """The mean of each row over the images at `where`."""
    return {key: float(row[where].mean()) for key, row in rows.items()}


def judged(judges: Judges, rgb: np.ndarray, styles: np.ndarray, concepts: np.ndarray) -> dict[str, np.ndarray]:
    """Style accuracy, probability of the style, concept top-1 and top-5 of each image [n] against ids [n]."""
    style = judges.style(tensor(rgb)).numpy()
    order = np.argsort(-judges.concept(tensor(rgb)).numpy(), axis=1)[:, :5]
    return {
        "style_accuracy": style.argmax(1) == styles,
        "style_probability": style[np.arange(len(rgb)), styles],
        "concept_top1": order[:, 0] == concepts,
        "concept_top5": (order == concepts[:, None]).any(1),
    }


def judge_unseen(judges: Judges, world: ArtWorld, styles: np.ndarray) -> dict[str, Any]:
    """The judges' scores on true images of `world` that they were not trained on, in the proportions of `styles`.

    The comparison for generated images: on its training images a judge scores higher (style accuracy .90, held-out
    .75). Each style's mean over its held-out cells, weighted by its share of `styles` [n]; styles without such cells
    are omitted.
    """
    held = np.flatnonzero(held_out(world)[0])
    of = world.style_id[held]
    weight = np.bincount(styles, minlength=of.max(initial=0) + 1)[of] / np.bincount(of)[of]
    rows = judged(judges, world.rgb()[held], of, world.concept_id[held])
    return {"pictures": len(held)} | {key: float(row @ weight / max(weight.sum(), 1.0)) for key, row in rows.items()}


def score_base(
    pipe: Any,
    world: ArtWorld,
    judges: Judges | None = None,
    n: int = 500,
    seed: int = 0,
    guidance: float = GUIDANCE,
    progress: Callable[[int, int], None] | None = None,
    call: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card's scores: of generated images, also by style; of true images; style accuracy relative to true images.

    "core": for the prompts with concepts available in all train styles, if not all are; "scenes": `score_scenes`.
    """
    meta = load_meta()
    rows = random_cells(world, n, seed)
    styles, concepts = world.style_id[rows], world.concept_id[rows]
    rng = np.random.default_rng(seed)
    prompts = [
        prompt(meta["concepts"][c]["label"], meta["styles"][s]["descriptions"][rng.integers(2)])
        for s, c in zip(styles, concepts, strict=True)
    ]
    pictures = sample_images(pipe, prompts, seed, guidance=guidance, progress=progress, call=call)
    judges = judges or Judges.load()
    generated = judged(judges, pictures, styles, concepts)
    made = means(generated)
    truth = judged(judges, world.rgb()[rows], styles, concepts)
    true = means(truth)
    core = np.isin(concepts, meta["split"]["core_everywhere"])
    by_style: dict[str, dict[str, Any]] = {}
    for style in np.unique(styles):
        own = styles == style
        by_style[meta["style_names"][style]] = {"prompts": int(own.sum()), **means(generated, own)}
    unseen = judge_unseen(judges, world, styles)
    share = made["style_accuracy"] / max(true["style_accuracy"], 1e-9)
    settings: dict[str, Any] = {"judges": {which: judges.card[which]["sha256"] for which in ("style", "concept")}}
    settings |= {
        "prompts": n,
        "steps": (call or {}).get("num_inference_steps", STEPS),
        "guidance": guidance,
        "seed": seed,
    }
    part: dict[str, Any] = {}
    if core.any() and not core.all():
        part["core"] = {"prompts": int(core.sum()), "generated": means(generated, core), "true": means(truth, core)}
    return {
        "generated": made,
        "true": true,
        "style_share": share,
        **part,
        "scenes": score_scenes(pipe, world, judges, seed=seed, guidance=guidance, call=call),
        "true_unseen": unseen,
        "by_style": by_style,
        **settings,
    }


def score_scenes(
    pipe: Any,
    world: ArtWorld,
    judges: Judges,
    n: int = SCENES,
    seed: int = 0,
    guidance: float = GUIDANCE,
    call: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """For n prompts with two objects in one style and n with three: the concept judge's recall of the objects (at the
    threshold of 1 % false positives), and its recall on true scenes of the same images."""
    rng = Random(seed)
    styles = [int(style) for style in np.unique(world.style_id)]
    scores: dict[str, Any] = {"threshold": judges.concept_threshold}
    for size in (2, 3):
        rows = []
        for _ in range(n):
            style = rng.choice(styles)
            rows.append((style, rng.sample(np.flatnonzero(world.style_id == style).tolist(), size)))
        things = np.array([[int(world.concept_id[i]) for i in members] for _, members in rows])
        prompts = [scene_caption(row.tolist(), style, rng) for (style, _), row in zip(rows, things, strict=True)]
        made = sample_images(pipe, prompts, seed, guidance=guidance, call=call)
        true = [compose([world.rgba[i] for i in members], 128, rng, side=(0.3, 0.6)).rgb for _, members in rows]
        found = [
            float((np.take_along_axis(judges.concept(tensor(p)).numpy(), things, 1) >= judges.concept_threshold).mean())
            for p in (made, np.stack(true))
        ]
        scores[str(size)] = {"prompts": n, "generated": found[0], "true": found[1]}
    return scores


def sample_grid(
    pipe: Any, call: Mapping[str, Any] | None = None, seed: int = 0, guidance: float = GUIDANCE
) -> Image.Image:
    """The fixed grid of 6 styles x 12 concepts, unlabelled: rows and columns are GRID_STYLES and GRID_THINGS."""
    meta = load_meta()
    words = {style["name"]: style["descriptions"][0] for style in meta["styles"]}
    prompts = [prompt(thing, words[style]) for style in GRID_STYLES for thing in GRID_THINGS]
    rgb = sample_images(pipe, prompts, seed, guidance=guidance, call=call)
    rows = [np.concatenate(list(rgb[k : k + 12]), 1) for k in range(0, len(rgb), 12)]
    return Image.fromarray(np.concatenate(rows, 0))
