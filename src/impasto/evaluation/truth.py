"""The true images: the same concepts in the same style, from the art world."""

from collections.abc import Iterable, Sequence

from PIL import Image

from impasto.artworld import cache_dir as artworld_folder
from impasto.artworld import load, load_slice
from impasto.artworld.world import DATA_NAME


def true_pictures(
    style: int, concepts: Iterable[int], ground: Sequence[int] = (255, 255, 255)
) -> dict[int, Image.Image]:
    """concept -> RGB image on a plain ground (r, g, b), for the available concepts of a style.

    From the packaged slice (held-out styles, 76 concepts), then from the built art world if there is one; other cells
    are missing in the result.
    """
    wanted = set(concepts)
    found: dict[int, Image.Image] = {}
    for source in (load_slice, load):
        missing = wanted - found.keys()
        if not missing or (source is load and not (artworld_folder() / DATA_NAME).is_file()):
            continue
        world = source(concepts=sorted(missing))
        part = world.select(styles=[style])
        found |= {int(c): Image.fromarray(rgb) for c, rgb in zip(part.concept_id, part.rgb(ground), strict=True)}
    return found
