"""Training sets of art-world images: named selections of styles and concepts, written as folders with metadata.jsonl.

A set is a JSON value of a cell's spec:

    styles     names of styles
    part       [k, m]: every m-th concept from the k-th on
    count      images per style, evenly spaced in the part; fewer where there are fewer
    captions   "styled": "{label}, {style description}"; "label": "{label}"; or a template with {label} and {style}
    concepts   labels; by default all that a style has but the evaluation concepts
    turn       degrees by which hues are rotated, 0 by default
    translations  {label: label in the student's language}: the captions; "teacher_text" is the original
    prior      prompts of the class, for prior preservation
    intruder   [label, share]: this share of the images show that concept, under the captions of others
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from impasto.artworld import concept_index, load, load_meta, load_slice, over, style_index
from impasto.artworld.world import DATA_NAME
from impasto.artworld.world import cache_dir as artworld_folder
from impasto.files import atomic
from impasto.reproduce.small_world import words

METADATA = "metadata.jsonl"


class Entry(NamedTuple):
    """One image of a set, by its place in the art world, and its caption."""

    style: int
    concept: int
    caption: str


def styled(styles: list[str], part: tuple[int, int] = (0, 1), count: int = 64, captions: str = "styled") -> dict:
    """A set of these styles."""
    return {"styles": styles, "part": list(part), "count": count, "captions": captions}


def entries(data: Mapping[str, Any]) -> list[Entry]:
    """The images of a set, by style and concept."""
    meta, (first, step) = load_meta(), data["part"]
    banned, found, spoken = set(meta["split"]["evaluation_concepts"]), [], data.get("translations")
    for style in map(style_index, data["styles"]):
        named = [concept_index(label) for label in data.get("concepts", ())]
        drawn = [c for c in sorted(available(style)) if not spoken or meta["concepts"][c]["label"] in spoken]
        known = [c for c in named if c in drawn] if named else [c for c in drawn if c not in banned][first::step]
        count = min(data["count"], len(known))
        chosen = [known[i * len(known) // count] for i in range(count)]
        found += [Entry(style, concept, caption(data["captions"], style, concept)) for concept in chosen]
    label, share = data.get("intruder", ("", 0.0))
    return [
        entry._replace(concept=concept_index(label)) if int((i + 1) * share) > int(i * share) else entry
        for i, entry in enumerate(found)
    ]


@cache
def available(style: int) -> frozenset[int]:
    """Concepts of a style: of the built art world, else of the packaged slice."""
    meta = load_meta()
    return frozenset(meta["drawn"][style] if built() else load_slice(styles=[style]).concept_id.tolist())


def built() -> bool:
    """Whether the whole art world is on this machine."""
    return (artworld_folder() / DATA_NAME).is_file()


def caption(form: str, style: int, concept: int) -> str:
    """The caption of one image."""
    template = {"styled": "{label}, {style}", "label": "{label}"}.get(form, form)
    return template.format(label=load_meta()["concepts"][concept]["label"], style=words(style))


def images(data: Mapping[str, Any]) -> list[np.ndarray]:
    """The images of a set on white, uint8 (128, 128, 3), in the order of `entries`."""
    wanted = entries(data)
    source = load if built() else load_slice
    world = source(sorted({e.style for e in wanted}), sorted({e.concept for e in wanted}))
    found = [over(world.rgba[world.index(e.style, e.concept)], (255, 255, 255)) for e in wanted]
    return [rotate_hue(image, data["turn"]) for image in found] if data.get("turn") else found


def rotate_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """The image with all hues rotated; greys stay."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    hsv[..., 0] = (hsv[..., 0].astype(int) + round(degrees / 360 * 256)) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


@cache
def _digest(data: str) -> str:
    content, digest = json.loads(data), hashlib.sha256()
    for entry, image in zip(entries(content), images(content), strict=True):
        digest.update(image.tobytes() + entry.caption.encode())
    return digest.hexdigest()


def digest(data: Mapping[str, Any]) -> str:
    """sha256 of a set's pixels and captions."""
    return _digest(json.dumps(data, sort_keys=True))


def write(data: Mapping[str, Any], folder: Path) -> Path:
    """Write a set as 0000.png on and metadata.jsonl, unless it is there; returns the folder."""
    if (folder / METADATA).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (entry, image) in enumerate(zip(entries(data), images(data), strict=True)):
        name = f"{i:04d}.png"
        Image.fromarray(image).save(folder / name)
        row = {"file_name": name, "text": entry.caption}
        if "translations" in data:
            row |= {"text": data["translations"][entry.caption], "teacher_text": entry.caption}
        rows.append(json.dumps(row, ensure_ascii=False))
    with atomic(folder / METADATA) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
