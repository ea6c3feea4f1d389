"""`impasto evaluate`: a folder of generated images -> scores.json, beside what the same ruler gives the true ones."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import load_meta
from impasto.artworld.judges import Judges
from impasto.errors import UserError, nearest
from impasto.evaluate.encoders import Encoder, load_encoder
from impasto.evaluate.labels import Labels, concepts_of, read_concepts
from impasto.evaluate.ruler import Ruler
from impasto.evaluate.samples import Sample, open_image, read_folder
from impasto.evaluate.scores import means
from impasto.evaluate.truth import true_pictures
from impasto.paths import atomic


def evaluate(
    folder: Path | str,
    style_of: str | None = None,
    concepts: Path | str | None = None,
    reference: Path | str | None = None,
    reference_concept: str | None = None,
    base_images: Path | str | None = None,
    judges: Judges | None = None,
    encoder: Encoder | Path | str | None = "clip",
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score the PNGs of `folder`; the result is also written to `out` (default `folder/scores.json`), atomically.

    style_of: a style of the art world that the images should be in; None leaves what needs it None.
    concepts: file with one label per image, in name order; default: what each PNG's own prompt names,
        None where that is not certain (`labels.Labels.concept`).
    reference: the picture that was trained on; default: that of the one style folder that the PNGs name.
    reference_concept: label of the reference's object; default: what the caption of that style folder names.
    base_images: folder with the same prompts drawn by the base without adapter; scored the same way, under "base".
    judges: default the packaged ones. encoder: "clip" (the packaged small CLIP), a folder, a hub id, or None.

    Result: every score of `scores.SCORES` as its mean over the images (None where it cannot be known), "interval"
    (95 %, [low, high]) and "n" per score, the same under "true" (the true pictures of the same cells) and "base" (None
    when not given), "images" (a row per image), "notes" (what is unknown, and why). UserError on bad input.
    """
    samples = read_folder(folder)
    judges = judges if judges is not None else Judges.load()
    labels = Labels.from_meta(load_meta())
    asked, notes = _concepts(samples, concepts, labels)
    trained = _reference(samples, reference, reference_concept, labels)
    style = _style(style_of, judges)
    truths = {} if style is None else true_pictures(style, [c for c in asked if c is not None])
    ruler = Ruler(judges, _encoder(encoder), style, trained.image, trained.concept, truths)
    rows = ruler.rows([sample.image for sample in samples], asked, [sample.prompt for sample in samples])
    result = {
        "folder": str(folder),
        "images_scored": len(samples),
        "style_of": style_of,
        "reference": trained.describe(labels),
        "judges": {which: judges.card[which]["sha256"] for which in ("style", "concept") if which in judges.card},
        "encoder": ruler.encoder.name if ruler.encoder else None,
        **means(rows),
        "true": _true_means(ruler, samples, asked),
        "base": _base_means(ruler, base_images, concepts, labels),
        "notes": notes + _notes(style_of, asked, truths, trained),
        "images": [{"file": s.path.name, "prompt": s.prompt, **row} for s, row in zip(samples, rows, strict=True)],
    }
    with atomic(Path(out) if out is not None else Path(folder) / "scores.json") as path:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


@dataclass(frozen=True)
class Reference:
    """The picture that was trained on and the concept that it shows; None is unknown."""

    path: Path | None = None
    image: Image.Image | None = None
    concept: int | None = None

    def describe(self, labels: Labels) -> dict[str, Any] | None:
        """For scores.json: path, SHA-256 of the file, label of the concept."""
        concept = None if self.concept is None else labels.names[self.concept]
        if self.path is None:
            return None if concept is None else {"path": None, "sha256": None, "concept": concept}
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"path": str(self.path), "sha256": digest, "concept": concept}


def _concepts(samples: Sequence[Sample], file: Path | str | None, labels: Labels) -> tuple[list[int | None], list[str]]:
    if file is not None:
        return read_concepts(file, len(samples), labels), []
    found = concepts_of([sample.prompt for sample in samples], labels)
    mute = sum(sample.prompt is None for sample in samples)
    unnamed = sum(concept is None for concept in found) - mute
    notes = []
    if mute:
        notes.append(
            f"{mute} of {len(samples)} images carry no prompt: their concept scores are null (give --concepts)"
        )
    if unnamed:
        notes.append(
            f"{unnamed} of {len(samples)} prompts name nothing for certain that the judge knows: "
            "their concept scores are null (give --concepts)"
        )
    return found, notes


def _style(name: str | None, judges: Judges) -> int | None:
    if name is None:
        return None
    if name not in judges.style_names:
        hint = nearest(name, judges.style_names)
        raise UserError(f"unknown style {name!r}: {hint}; for any other style give --reference picture.png")
    return judges.style_names.index(name)


def _reference(samples: Sequence[Sample], path: Path | str | None, concept: str | None, labels: Labels) -> Reference:
    run = _style_folder(samples)
    if path is None and run is not None and (run / "reference.png").is_file():
        path = run / "reference.png"
    caption = None if run is None else _caption(run)
    named = labels.named(concept) if concept else labels.concept(caption) if caption else None
    if path is None:
        return Reference(concept=named)
    return Reference(Path(path), open_image(Path(path))[0], named)


def _style_folder(samples: Sequence[Sample]) -> Path | None:
    """The style folder that all images were drawn with, when they name exactly one and it is still there."""
    paths = {tuple(str(style.get("path")) for style in sample.meta.get("styles") or ()) for sample in samples}
    names = next(iter(paths)) if len(paths) == 1 else ()
    return Path(names[0]) if len(names) == 1 and Path(names[0]).is_dir() else None


def _caption(run: Path) -> str | None:
    """The (first) caption in a run's resolved recipe.toml, None where there is none."""
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    caption = recipe.get("caption") or None
    return caption[0] if isinstance(caption, list) else caption


def _encoder(encoder: Encoder | Path | str | None) -> Encoder | None:
    if encoder is None or isinstance(encoder, Encoder):
        return encoder
    return load_encoder() if encoder == "clip" else load_encoder(encoder)


def _true_means(ruler: Ruler, samples: Sequence[Sample], asked: Sequence[int | None]) -> dict[str, Any] | None:
    """The same scores of the true pictures at the same cells, None when none is at hand."""
    cells = [
        (sample.prompt, concept) for sample, concept in zip(samples, asked, strict=True) if concept in ruler.truths
    ]
    if not cells:
        return None
    concepts = [concept for _, concept in cells if concept is not None]
    pictures = [ruler.truths[concept] for concept in concepts]
    return means(ruler.rows(pictures, concepts, [prompt for prompt, _ in cells], true=True))


def _base_means(
    ruler: Ruler, folder: Path | str | None, concepts: Path | str | None, labels: Labels
) -> dict[str, Any] | None:
    if folder is None:
        return None
    samples = read_folder(folder)
    asked, _ = _concepts(samples, concepts, labels)
    return means(ruler.rows([sample.image for sample in samples], asked, [sample.prompt for sample in samples]))


def _notes(style_of: str | None, asked: Sequence[int | None], truths: dict, trained: Reference) -> list[str]:
    notes = []
    if style_of is None:
        notes.append("no --style-of: style scores and true pictures are null")
    missing = {concept for concept in asked if concept is not None} - truths.keys()
    if style_of is not None and missing:
        notes.append(f"{len(missing)} asked concepts have no true picture in {style_of} at hand: left out of the pairs")
    if trained.image is None:
        notes.append("no reference picture known: its cosines are null (give --reference)")
    if trained.concept is None:
        notes.append("the reference's concept is unknown: leakage is null (give --reference-concept)")
    return notes
