"""Captions: what the reference shows, and in what style: "{content} in {style} style"."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from impasto.errors import UserError

STYLE_WORDS = """
style styled stylized stylised art artwork painting drawing sketch illustration rendering render design print
watercolor watercolour oil crayon pencil ink charcoal pastel mosaic sticker icon icons emoji emojis pixel clipart
cartoon comic anime manga engraving etching woodcut linocut sculpture collage graffiti font glyph vector flat doodle
pictogram bitmap pixels outline outlines outlined monochrome silhouette minimalist halftone voxel
"""


def check(caption: str, path: Path | str) -> str:
    """The caption, white space tidied. Raises UserError when it is empty; warns when no word in it names a style.

    A style that the caption does not name has no words to be called by: it goes into everything, or into the subject.
    """
    caption = " ".join(caption.split())
    if not caption:
        raise UserError(
            f"the caption of {str(path)!r} is empty: say what it shows, as in 'a rocket in pixel art style'"
        )
    if not set(re.findall(r"[a-z]+", caption.lower())) & set(STYLE_WORDS.split()):
        warnings.warn(
            f"the caption {caption!r} names no style, so nothing will call it later: try {caption + ' in ... style'!r}",
            stacklevel=2,
        )
    return caption


def pair(images: Sequence[Path], captions: Sequence[str]) -> list[tuple[Path, str]]:
    """Each picture with its caption, in order; one caption may serve all. Raises UserError when they do not match."""
    if not images:
        raise UserError("no reference picture: give one with --image")
    if not captions:
        raise UserError("no caption: say what the picture shows with --caption 'a rocket in pixel art style'")
    if len(captions) == 1:
        captions = list(captions) * len(images)
    if len(captions) != len(images):
        raise UserError(f"{len(images)} pictures but {len(captions)} captions: give one for each, or one for all")
    return [(Path(image), check(caption, image)) for image, caption in zip(images, captions, strict=True)]
