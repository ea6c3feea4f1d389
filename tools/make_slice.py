"""Cut the packaged slice out of the built art world: held-out styles x (evaluation + reference concepts).

    python tools/make_slice.py

None of these styles is share-alike. Run it after `impasto artworld build`; the result is the same file, byte for byte.
"""

from pathlib import Path

import numpy as np

from impasto.artworld import load, load_meta
from impasto.artworld.build import encode_webp, write_pictures
from impasto.artworld.sources import SHAREALIKE

TARGET = Path(__file__).parents[1] / "src/impasto/artworld/data/slice.safetensors"
LIMIT = 6_000_000  # bytes


def main() -> None:
    meta = load_meta()
    split = meta["split"]
    names = [meta["style_names"][style] for style in split["heldout_styles"]]
    assert not set(names) & set(SHAREALIKE)
    world = load(split["heldout_styles"], split["evaluation_concepts"] + split["reference_concepts"])
    encoded = [encode_webp(picture) for picture in world.rgba]
    write_pictures(
        TARGET,
        webp=np.frombuffer(b"".join(encoded), np.uint8),
        size=np.array([len(data) for data in encoded]),
        style_id=world.style_id,
        concept_id=world.concept_id,
        styles=dict.fromkeys(names, "slice"),
    )
    size = TARGET.stat().st_size
    assert size <= LIMIT, f"{size} bytes"
    print(f"{len(world)} pictures, {size / 1e6:.2f} MB -> {TARGET}")


if __name__ == "__main__":
    main()
