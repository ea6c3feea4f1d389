"""References of a comparison: images with captions and prompts, given one by one, in a file, or of the art world."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import concept_index, drawn_in, load_meta, spread, style_index
from impasto.artworld.captions import prompt as art_prompt
from impasto.coerce import convert
from impasto.data import references
from impasto.errors import UserError, nearest
from impasto.evaluation.labels import Labels
from impasto.evaluation.truth import true_pictures
from impasto.files import atomic, cache_dir
from impasto.styles.defaults import prompts_of_others, style_words

KEYS = ("image", "caption", "style", "concept", "prompts", "name")
STYLE = "{style}"


@dataclass(frozen=True)
class ReferenceImage:
    """style: of the art world, None where it is none of its styles. concept: label of what it shows, as far as known.
    prompts: the same for every method."""

    name: str
    image: Path
    caption: str
    prompts: tuple[str, ...]
    sha256: str
    style: str | None = None
    concept: str | None = None

    @property
    def words(self) -> str:
        """The style's words in the caption, "" where it has none."""
        return style_words((self.caption,)) or ""


def collect(
    images: Sequence[Path],
    captions: Sequence[str],
    file: Path | None,
    art: Sequence[str],
    per_style: int,
    style_of: str | None,
    prompts: Sequence[str],
    count: int,
) -> list[ReferenceImage]:
    """All references in order: of --image and --caption, of the file, of styles of the art world. Raises UserError.

    prompts: in place of those of the art world's evaluation concepts, or of other things in the caption's form;
    "{style}" in them stands for the caption's style words.
    """
    if len(images) != len(captions):
        raise UserError(f"{len(images)} --image and {len(captions)} --caption: give one caption for each image")
    tables = [{"image": str(i), "caption": c, "style": style_of} for i, c in zip(images, captions, strict=True)]
    found = [build(table, prompts, count, "--image") for table in tables]
    if file is not None:
        found += [build(table, prompts, count, str(file), file.parent) for table in read_file(file)]
    for style in art:
        found += [
            build({"style": style, "concept": label}, prompts, count, "--art-style")
            for label in reference_labels(style, per_style)
        ]
    if not found:
        raise UserError("no reference: give --image with --caption, --references FILE, or --art-style NAME")
    return unique(found)


def read_file(file: Path) -> list[dict[str, Any]]:
    """The tables of a references file: JSON, a list or {"references": [...]}; or TOML, [[references]]. Raises
    UserError."""
    try:
        text = file.read_text(encoding="utf-8")
        content = tomllib.loads(text) if file.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"references file {str(file)!r} cannot be read: {error}") from None
    rows = content.get("references") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"references file {str(file)!r} must hold a list of tables, each with image and caption")
    for row in rows:
        for key in row:
            if key not in KEYS:
                raise UserError(f"references file {str(file)!r}: unknown key {key!r}: {nearest(key, KEYS)}")
    return rows


def build(
    table: Mapping[str, Any], prompts: Sequence[str], count: int, where: str, folder: Path | None = None
) -> ReferenceImage:
    """One reference from its table; see `collect`. folder: that relative paths start from."""
    given = {key: convert(table[key], str, f"{where}: {key}") for key in KEYS if key != "prompts" and table.get(key)}
    own = convert(table.get("prompts", ()), tuple[str, ...], f"{where}: prompts")
    style, concept, caption = given.get("style"), given.get("concept"), given.get("caption", "")
    if style is not None:
        style_index(style)  # an unknown one is named
    if "image" in given:
        path = (folder or Path()) / given["image"]
        if not caption.strip():
            raise UserError(f"{where}: the image {given['image']!r} has no caption: say what it shows, and its style")
    elif style is not None and concept is not None:
        path = art_image(style, concept)
        caption = caption or art_prompt(load_meta()["concepts"][concept_index(concept)]["label"], description(style))
    else:
        raise UserError(
            f"{where}: a reference needs an image with a caption, or a style and a concept of the art world"
        )
    sha256 = references.load(path).sha256
    label = concept or known_label(caption)
    name = given.get("name") or (f"{style}, {label}" if style and label else path.stem)
    found = ReferenceImage(name, path, caption, (), sha256, style, label)
    chosen = own or tuple(prompts)
    filled = tuple(one.replace(STYLE, found.words) for one in chosen) or default_prompts(found, count)
    if any(STYLE in one for one in chosen) and not found.words:
        raise UserError(f"the caption {caption!r} has no style words for {STYLE}: write 'a cat in neon sign style'")
    if not filled:
        raise UserError(f"the caption {caption!r} does not tell its style words: give prompts with --prompt")
    return replace(found, prompts=filled)


def default_prompts(reference: ReferenceImage, count: int) -> tuple[str, ...]:
    """Of a style of the art world its evaluation concepts, `count` evenly spaced; else up to eight other things in the
    caption's form."""
    if reference.style is None:
        return tuple(prompts_of_others((reference.caption,), min(count, 8)))
    meta = load_meta()
    drawn = drawn_in(style_index(reference.style))
    concepts = [c for c in meta["split"]["evaluation_concepts"] if c in drawn] or meta["split"]["evaluation_concepts"]
    chosen = spread(concepts, min(count, len(concepts)))
    words = reference.words or description(reference.style)
    return tuple(art_prompt(meta["concepts"][c]["label"], words) for c in chosen)


def description(style: str) -> str:
    """The art world's words for a style."""
    return load_meta()["styles"][style_index(style)]["descriptions"][0]


def reference_labels(style: str, count: int) -> list[str]:
    """`count` evenly spaced reference concepts of a held-out style, as `reproduce` has them. Raises UserError."""
    meta, index = load_meta(), style_index(style)
    known = [c for c in meta["split"]["reference_concepts"] if c in drawn_in(index)]
    if not known:
        names = ", ".join(meta["style_names"][i] for i in meta["split"]["heldout_styles"])
        raise UserError(f"--art-style {style!r} has no packaged references: choose one of {names}")
    if not 1 <= count <= len(known):
        raise UserError(f"--per-style must be from 1 to {len(known)} for {style!r}, not {count}")
    return [meta["concepts"][c]["label"] for c in spread(known, count)]


def art_image(style: str, label: str) -> Path:
    """The file of a true image of the art world, written to the cache. Raises UserError where there is none."""
    concept = concept_index(label)
    found = true_pictures(style_index(style), [concept])
    if concept not in found:
        raise UserError(f"no image of {label!r} in {style} here: build the art world, or choose another concept")
    file = cache_dir("compare", "references", f"{style}-{concept:04d}.png")
    if not file.is_file():
        with atomic(file) as temporary:
            found[concept].save(temporary, format="PNG")
    return file


def known_label(caption: str) -> str | None:
    """The art world's label that a caption names, None where it names none."""
    labels = labels_of_art()
    concept = labels.concept(caption)
    return None if concept is None else labels.names[concept]


def labels_of_art() -> Labels:
    return Labels.from_meta(load_meta())


def true_images(reference: ReferenceImage) -> dict[str, Image.Image]:
    """{prompt: true image} for the prompts whose true image is known."""
    if reference.style is None:
        return {}
    labels = labels_of_art()
    concepts = {prompt: labels.concept(prompt) for prompt in reference.prompts}
    found = true_pictures(style_index(reference.style), [c for c in concepts.values() if c is not None])
    return {prompt: found[c] for prompt, c in concepts.items() if c is not None and c in found}


def unique(found: Sequence[ReferenceImage]) -> list[ReferenceImage]:
    """With a number behind names that are there twice. Raises UserError for the same reference given twice."""
    seen: dict[tuple[str, str], str] = {}
    names: dict[str, int] = {}
    result = []
    for one in found:
        if (key := (one.sha256, one.caption)) in seen:
            raise UserError(f"the reference {one.name!r} is given twice: leave one of them out")
        seen[key] = one.name
        names[one.name] = names.get(one.name, 0) + 1
        result.append(replace(one, name=f"{one.name} {names[one.name]}") if names[one.name] > 1 else one)
    return result
