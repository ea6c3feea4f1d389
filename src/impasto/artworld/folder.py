"""A training folder from the art world: PNG files of some styles with their captions in metadata.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from impasto.artworld.captions import prompt
from impasto.artworld.world import load, style_index
from impasto.errors import UserError
from impasto.files import atomic, writable_folder


def write_folder(
    styles: Sequence[str], out: Path, count: int | None = None, style_words: bool = True
) -> dict[str, Any]:
    """Write `count` images per style (all when None), evenly spaced over the concepts, on white; never the evaluation
    and reference concepts, so that what is trained on the folder can be scored on them.

    Captions: "{label}, {style description}", or the label alone without `style_words`. Returns counts. Raises UserError
    on an unknown style, and where `out` holds other images.
    """
    writable_folder(out)
    if any(out.iterdir()):
        raise UserError(f"{str(out)!r} is not empty: choose another --out")
    lines = []
    for style in styles:
        world = load([style_index(style)])
        meta = world.meta
        kept_out = {*meta["split"]["evaluation_concepts"], *meta["split"]["reference_concepts"]}
        rows = [row for row in range(len(world)) if int(world.concept_id[row]) not in kept_out]
        if count is not None:
            if not 0 < count <= len(rows):
                raise UserError(f"--count must be from 1 to {len(rows)} for {style!r}, not {count}")
            rows = [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]
        description = meta["styles"][style_index(style)]["descriptions"][0]
        for row, pixels in zip(rows, world.rgb()[rows], strict=True):
            concept = int(world.concept_id[row])
            label, name = meta["concepts"][concept]["label"], f"{style}-{concept:04d}.png"
            Image.fromarray(pixels).save(out / name)
            text = prompt(label, description) if style_words else label
            lines.append(json.dumps({"file_name": name, "text": text}, ensure_ascii=False))
    with atomic(out / "metadata.jsonl") as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"out": str(out), "images": len(lines), "styles": list(styles)}
