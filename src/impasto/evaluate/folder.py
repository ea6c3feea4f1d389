"""`impasto evaluate`: a folder of generated images -> scores.json, beside what the same ruler gives the true ones."""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import load_meta
from impasto.data import captions
from impasto.errors import UserError, nearest
from impasto.evaluate.encoders import Encoder, load_encoder
from impasto.evaluate.labels import Labels, concepts_of, read_concepts
from impasto.evaluate.ruler import Ruler
from impasto.evaluate.samples import Sample, open_image, read_folder
from impasto.evaluate.scores import means
from impasto.evaluate.truth import true_pictures
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.styles.weights import style_hash


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
    """Score the PNGs of `folder`; the result is also written to `out` (default `folder/scores.json`), atomically. What
    lies there stays unless `evaluate` wrote it; the pictures of a style folder or a demo are in folders of their own.

    style_of: a style of the art world that the images should be in; None leaves what needs it None.
    concepts: file with one label per image, in name order; default: the label before the style in each PNG's own
        prompt, None where there is none (`labels.Labels.concept`).
    reference: the picture that was trained on; default: that of the one style folder that the PNGs name, as long as it
        holds the weights that they were drawn with.
    reference_concept: label of the reference's object; default: what the (first) caption of that style folder names.
    base_images: folder with the same prompts, each as often, drawn by the base without adapter; scored the same way,
        under "base".
    judges: default the packaged ones. encoder: "clip" (the packaged small CLIP), a folder, a hub id, or None.

    Result: every score of `scores.SCORES` as its mean over the images (None where it cannot be known), "interval"
    (95 %, [low, high]) and "n" per score, the same under "true" (the true pictures of the same cells) and "base" (None
    when not given), "images" (a row per image), "notes" (what is unknown, and why). UserError on bad input.
    """
    samples, target = read_folder(folder), _target(Path(folder), out)
    base, unsure = ([], []) if base_images is None else _base(base_images, samples)
    judges = judges if judges is not None else Judges.load()
    labels = Labels.from_meta(load_meta())
    asked, notes = _concepts(samples, concepts, labels)
    trained, found = _reference(samples, reference, reference_concept, labels)
    style = _style(style_of, judges)
    truths = {} if style is None else true_pictures(style, [c for c in asked if c is not None])
    ruler = Ruler(judges, _encoder(encoder), style, trained.image, trained.concept, truths)
    rows = ruler.rows((sample.image for sample in samples), asked, [sample.prompt for sample in samples])
    result = {
        "folder": str(folder),
        "images_scored": len(samples),
        "style_of": style_of,
        "reference": trained.describe(labels),
        "judges": {which: judges.card[which]["sha256"] for which in ("style", "concept") if which in judges.card},
        "encoder": ruler.encoder.name if ruler.encoder else None,
        "sampling": _sampling(samples),
        **means(rows),
        "true": _true_means(ruler, samples, asked),
        "base": _base_means(ruler, base, concepts, labels),
        "notes": notes + unsure + found + _notes(style_of, asked, truths, trained),
        "images": [{"file": s.path.name, "prompt": s.prompt, **row} for s, row in zip(samples, rows, strict=True)],
    }
    with atomic(target) as path:
        # a path that is no UTF-8 is escaped, as JSON writes it
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return result


def _sampling(samples: Sequence[Sample]) -> dict[str, Any]:
    """How the images were sampled, as their metadata say: a value where all agree, else the list of different ones."""
    found: dict[str, list[Any]] = {}
    for sample in samples:
        meta = sample.meta | {"strength": [style.get("strength") for style in sample.meta.get("styles") or ()]}
        for key in ("strength", "guidance", "style_guidance", "base_guidance", "negative_prompt"):
            if meta.get(key) not in (None, [], *found.get(key, [])):
                found.setdefault(key, []).append(meta[key])
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def _target(folder: Path, out: Path | str | None) -> Path:
    """Where the scores go. UserError when the folder is a style's or a demo's, or another's file would be replaced."""
    for mark, what, images in (("recipe.toml", "style", "images"), ("demo.json", "demo", "base/images")):
        if (folder / mark).is_file():
            raise UserError(f"{folder} is the folder of a {what}: give that of its pictures, such as {folder / images}")
    target = Path(out) if out is not None else folder / "scores.json"
    if target.exists():
        from impasto.sampling.output import scored_here

        if not scored_here(target):
            raise UserError(f"{target} was not written by `impasto evaluate` and stays: give another --out")
    return target


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
            f"{unnamed} of {len(samples)} prompts have no label of the judge's before their style: "
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


def _reference(
    samples: Sequence[Sample], path: Path | str | None, concept: str | None, labels: Labels
) -> tuple[Reference, list[str]]:
    """What is given, else what the style folder has; and notes on it."""
    run, notes = (None, []) if path is not None and concept else _style_folder(samples)
    if path is None and run is not None and (run / "reference.png").is_file():
        path = run / "reference.png"
    told = [labels.concept(caption) for caption in ([] if run is None else _captions(run))]
    named = labels.named(concept) if concept else told[0] if told else None
    if named is not None and not concept and len(set(told)) > 1:
        notes.append(f"the style was trained on several things: leakage is that of the first, {labels.names[named]}")
    if path is None:
        return Reference(concept=named), notes
    return Reference(Path(path), open_image(Path(path))[0], named), notes


def _style_folder(samples: Sequence[Sample]) -> tuple[Path | None, list[str]]:
    """The style folder that all images were drawn with: they name exactly one, and it is there, with the weights that
    they name; a note where it has others."""
    named = {tuple(_path_and_hash(style) for style in sample.meta.get("styles") or ()) for sample in samples}
    one = next(iter(named)) if len(named) == 1 else ()
    if len(one) != 1 or not Path(one[0][0]).is_dir():
        return None, []
    path, drawn = one[0]
    if drawn and drawn != _weights(path):
        note = f"{path!r} no longer holds the style that drew the images: its reference and caption are not used"
        return None, [note]
    return Path(path), []


def _path_and_hash(style: dict[str, Any]) -> tuple[str, str]:
    return str(style.get("path")), str(style.get("hash") or "")


def _weights(run: str) -> str | None:
    """The sha256 of a style's weights, None where there are none."""
    try:
        return style_hash(run)
    except UserError:
        return None


def _captions(run: Path) -> list[str]:
    """Those that a run was trained on, [] where its recipe.toml tells none, or is damaged."""
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        return captions.of_run(recipe, recipe.get("impasto") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _base(folder: Path | str, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The base's images, and a note where not all prompts are known. UserError when they are of other prompts."""
    base = read_folder(folder)
    ours, theirs = Counter(sample.prompt for sample in samples), Counter(sample.prompt for sample in base)
    if None in ours | theirs:
        return base, ["some images carry no prompt: whether the base's are of the same prompts is not known"]
    if odd := (ours - theirs) + (theirs - ours):
        raise UserError(
            f"{folder} is not of the same prompts, each as often: {next(iter(odd))!r} is one that differs; draw them "
            "with the base alone, or leave out --base-images"
        )
    return base, []


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
    ruler: Ruler, samples: Sequence[Sample], concepts: Path | str | None, labels: Labels
) -> dict[str, Any] | None:
    if not samples:
        return None
    asked, _ = _concepts(samples, concepts, labels)
    return means(ruler.rows((sample.image for sample in samples), asked, [sample.prompt for sample in samples]))


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
