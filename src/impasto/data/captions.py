"""Captions: what the reference shows, and in what style: "{content} in {style} style"."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from impasto.errors import UserError

STYLE_WORDS = """
style styled stylized stylised art artwork painting drawing sketch illustration rendering render design print
watercolor watercolour oil crayon pencil ink charcoal pastel mosaic sticker icon icons emoji emojis pixel clipart
cartoon comic anime manga engraving etching woodcut linocut sculpture collage graffiti font glyph vector flat doodle
pictogram bitmap pixels outline outlines outlined monochrome silhouette minimalist halftone voxel
"""


TRIGGER = "[trigger]"

SYNTAX = (
    (r"<(?:lora|lyco|hypernet):[^<>]*>", "load a style with --style", "leave it out"),
    (r"<[a-z]+:[^<>]*>|\bembedding:\S+", "leave it out", "leave it out"),
    (r"\([^()]*[^()\d\s]\s*:\s*[\d.]+\s*\)|\(\([^()]+\)\)", "write the words alone", "write the words alone"),
    (r"\bBREAK\b", "leave it out", "leave it out"),
    (r"\|\|\|", "leave it out", "leave it out"),
    (r"\{[^{}]*\|[^{}]*\}", "give each as a --prompt", "write one of them"),
    (r"\b__[\w/*-]+__\b", "give each as a --prompt", "write one of them"),
    (r"\[[^\[\]]*[:|][^\[\]]*\]", "switch prompts with --switch-to and --switch-at", "write one of them"),
    (r"\[(?:name|filewords)\]", "write the trigger", f"write {TRIGGER}, with --trigger"),
    (r"\\[()\[\]]", "write the bracket alone", "write the bracket alone"),
    (r"(?:^|(?<=\s))--[a-z]\w*(?:\s+[\d.:]+)?", "leave it out", "leave it out"),
)
"""Other tools' syntax as regular expressions, with what to do instead in a prompt, and in a caption."""


def warn_syntax(texts: Sequence[str], what: Literal["prompts", "captions"]) -> None:
    """Warn once where texts hold syntax of A1111, ComfyUI, kohya, Midjourney or wildcards, which is read as words."""
    found: dict[str, str] = {}
    for pattern, in_prompt, in_caption in SYNTAX:
        matches = (match[0].strip() for text in texts for match in re.finditer(pattern, text))
        first = next((match for match in matches if match not in found), None)
        if first is not None:
            found[first] = in_prompt if what == "prompts" else in_caption
    if found:
        listed = "; ".join(f"{text!r}: {instead}" for text, instead in found.items())
        warnings.warn(f"{what} hold other tools' syntax, which is read as plain words ({listed})", stacklevel=3)


def check(caption: str, path: Path | str, trigger: str = "") -> str:
    """The caption, white space tidied. Raises UserError when it is empty; warns when no word in it names a style.

    A style that the caption does not name has no words to be called by: it goes into everything, or into the subject.
    """
    caption = " ".join(caption.split())
    if not caption:
        raise UserError(
            f"the caption of {str(path)!r} is empty: say what it shows, as in 'a rocket in pixel art style'"
        )
    if not names_style(caption, trigger):
        lacks = f"lacks the trigger {trigger!r}" if trigger else "names no style"
        better = f"{caption}, {trigger}" if trigger else f"{caption} in ... style"
        warnings.warn(f"the caption {caption!r} {lacks}, so nothing will call it later: try {better!r}", stacklevel=2)
    return caption


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text.lower())


def names_style(caption: str, trigger: str = "") -> bool:
    """Whether it holds the trigger, or without one a word that names a style."""
    if trigger:
        return trigger.lower() in caption.lower()
    return bool(set(re.findall(r"[a-z]+", caption.lower())) & set(STYLE_WORDS.split()))


def fill(caption: str, prefix: str = "", trigger: str = "") -> str:
    """`prefix` and caption with `[trigger]` replaced. Raises UserError when there is nothing to replace it with."""
    caption = " ".join(f"{prefix} {caption}".split())
    if TRIGGER in caption and not trigger:
        raise UserError(
            f"the caption {caption!r} holds {TRIGGER}: say what stands for it with --trigger 'wibble style'"
        )
    return caption.replace(TRIGGER, trigger)


def of_run(recipe: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """The captions that a run was trained on, each with prefix and trigger. inputs: what recipe.toml has in [impasto].

    A run that has kept none there has the recipe's, which are filled here; of a folder's pictures it tells none.
    """
    given = inputs.get("captions")
    if isinstance(given, list) and given:
        return [str(caption) for caption in given]
    given = recipe.get("caption") or []
    prefix, trigger = recipe.get("caption_prefix") or "", recipe.get("trigger") or TRIGGER
    return [fill(str(caption), prefix, trigger) for caption in ([given] if isinstance(given, str) else given)]


def pair(images: Sequence[Path], captions: Sequence[str], trigger: str = "") -> list[tuple[Path, str]]:
    """Each picture with its caption, in order; one caption may serve all. Raises UserError when they do not match."""
    if not images:
        raise UserError("no reference picture: give one with --image")
    if not captions:
        raise UserError(
            "no caption: say what the picture shows with --caption 'a rocket in pixel art style', or in a .txt file"
        )
    if len(captions) == 1:
        captions = list(captions) * len(images)
    if len(captions) != len(images):
        raise UserError(f"{len(images)} pictures but {len(captions)} captions: give one for each, or one for all")
    return [(Path(image), check(caption, image, trigger)) for image, caption in zip(images, captions, strict=True)]
