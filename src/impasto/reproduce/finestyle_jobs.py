"""Methods of generating a cell's images from a scene: `scene` (train, then generate), `base`, `scene-aligned`.

The concepts of a reference are found once per base, the base's images of a unit generated once, and trainings are
shared through the cache (`folder_jobs.trained`): how an arm is sampled is no part of its training.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from impasto.data.concepts import (
    FILE,
    Box,
    Concept,
    ConceptFile,
    iou,
    read_concepts,
    write_concepts,
)
from impasto.data.pictures import look
from impasto.files import cache_dir
from impasto.generation import generate
from impasto.guidance.config import PRESETS, StyleAligned, StyleSemantics
from impasto.regions import find_concepts
from impasto.reproduce.folder_jobs import content_hash, store_scores, trained
from impasto.reproduce.runner import BaseSpec
from impasto.reproduce.scenes import compose, key_of
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.sampling.samplers import DEFAULT

STYLE_WORDS = "style words"
PAIRS = ("found", "random", "nameless")
"""Training pairs of an arm: regions that were found; of the same sizes at random places; found, captions without the
concept."""


def scene_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Train on the reference, with `pairs` of its concepts where the arm says so; sample by the arm's `weights`."""
    assert reference is not None
    base_images(spec, place)
    arm = spec["arm"]
    own = {"settings": arm["settings"], "scene": spec["scene"], "style": spec["style"], "caption": spec["caption"]}
    more: dict[str, Any] = {"caption": (spec["caption"],)}
    if pairs := arm.get("pairs"):
        found = concepts_of(spec, place, reference)
        file = folder / FILE
        write_concepts(file, variant(found, pairs, spec["scene"]["seed"]))
        own["pairs"], more["concept_file"] = pairs, file
        store_scores(folder, {"region_iou": region_iou(found, true_boxes(spec))})
    style = trained(spec, place, own, more, reference)
    render(spec, place, folder / "images.part", (f"{style}:1",), guidance_of(arm, spec))


def base_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """The base alone, with the style in the prompt."""
    shutil.copytree(base_images(spec, place), folder / "images.part", dirs_exist_ok=True)


def aligned_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """StyleAligned: attention shared with the reference, no training."""
    base_images(spec, place)
    render(spec, place, folder / "images.part", (), StyleAligned(reference, spec["caption"]))


def guidance_of(arm: Mapping[str, Any], spec: Mapping[str, Any]) -> StyleSemantics | None:
    """None is ordinary guidance. The arm's `weights`: three numbers, or a preset; `null`: empty or STYLE_WORDS."""
    weights = arm.get("weights")
    if weights is None:
        return None
    if isinstance(weights, str):
        weights = PRESETS[weights](spec["sampling"]["guidance"])
    return StyleSemantics(*weights, n1="", n2=spec["words"] if arm.get("null") == STYLE_WORDS else "")


def render(
    spec: Mapping[str, Any], place: BaseSpec, folder: Path, styles: Sequence[str], guidance: Any | None = None
) -> None:
    """Write an image per prompt, from the noise that every arm of this seed has."""
    asked = spec["sampling"]
    scale = None if isinstance(guidance, StyleSemantics) else asked["guidance"]
    sampling = Sampling(asked["steps"], scale, "", asked["size"], style_guidance=0.0, base_guidance=0.0)
    sampling = replace(sampling, sampler=asked.get("sampler", DEFAULT))
    own = {"device": place.device, "precision": asked["precision"], "guidances": [guidance] if guidance else []}
    made = generate(place.base, spec["prompts"], styles=styles, seed=1000 * spec["seed"], sampling=sampling, **own)
    for i, (image, info) in enumerate(made):
        save_png(image, info, folder / f"{i:04d}.png")


def base_folder(spec: Mapping[str, Any]) -> Path:
    """Where the base's images of these prompts and this seed lie."""
    own = {name: spec[name] for name in ("base", "sampling", "prompts", "seed")}
    return cache_dir("reproduce", spec["base"][:12], "based", content_hash(own)[:20])


def base_images(spec: Mapping[str, Any], place: BaseSpec) -> Path:
    """The folder of the base's images of the cell's prompts and noise, generated unless they are there."""
    folder = base_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "images").is_dir():
            shutil.rmtree(folder / "part", ignore_errors=True)
            (folder / "part").mkdir()
            render(spec, place, folder / "part", ())
            (folder / "part").rename(folder / "images")
    return folder / "images"


def concepts_of(spec: Mapping[str, Any], place: BaseSpec, reference: Path) -> ConceptFile:
    """The concepts of a reference, found by the base's default finder unless they are in the cache."""
    own = {name: spec[name] for name in ("base", "style", "scene", "caption", "words")}
    folder = cache_dir("reproduce", spec["base"][:12], "concepts", content_hash(own)[:20])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / FILE).is_file():
            options = {"style_words": spec["words"], "device": place.device, "precision": place.precision}
            found = find_concepts(reference, spec["caption"], place.base, family=place.family(), **options)
            write_concepts(folder / FILE, found)
    return replace(read_concepts(folder / FILE), image_sha256=look(reference).sha256, base=place.base)


def variant(found: ConceptFile, pairs: str, seed: int) -> ConceptFile:
    """The concepts for an arm's training pairs, see PAIRS."""
    if pairs == "nameless":
        return replace(found, form="{style}")
    if pairs == "random":
        rng = np.random.default_rng([seed, 1])
        return replace(found, concepts=tuple(displaced(one, found.width, found.height, rng) for one in found.concepts))
    return found


def displaced(concept: Concept, width: int, height: int, rng: np.random.Generator) -> Concept:
    """With a box of the same size at a uniformly random place."""
    if concept.box is None:
        return concept
    left, top, right, bottom = concept.box
    x, y = (int(rng.integers(room + 1)) for room in (width - (right - left), height - (bottom - top)))
    return replace(concept, box=(x, y, x + right - left, y + bottom - top), score=None)


def true_boxes(spec: Mapping[str, Any]) -> dict[str, Box]:
    """{label: true box} of the things of a scene."""
    boxes = compose(spec["style"], *key_of(spec["scene"])).boxes.tolist()
    return {label: tuple(box) for label, box in zip(spec["scene"]["things"], boxes, strict=True)}


def region_iou(found: ConceptFile, true: Mapping[str, Box]) -> float:
    """Mean intersection over union of the things' regions with the true ones."""
    boxes = {concept.phrase: concept.box for concept in found.concepts}
    return float(np.mean([iou(box, true[label]) if (box := boxes.get(label)) else 0.0 for label in true]))


JOBS = {"scene": scene_job, "base": base_job, "scene-aligned": aligned_job}
