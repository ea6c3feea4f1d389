"""`impasto evaluate`: score a folder of generated images, with the same scores of true images, into scores.json."""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from impasto.artworld import load_meta
from impasto.data import captions
from impasto.errors import UserError, nearest
from impasto.evaluation import encoder_scores
from impasto.evaluation.encoders import Encoder, Instrument, load_all, load_encoder
from impasto.evaluation.labels import Labels, concepts_of, read_concepts
from impasto.evaluation.samples import Sample, open_image, read_folder, read_readable
from impasto.evaluation.scene_leak import find_things, measure_scene_leak
from impasto.evaluation.scorer import Scorer
from impasto.evaluation.scores import means
from impasto.evaluation.truth import true_pictures
from impasto.evaluation.validity import between, check_bases, check_reference, similarity_range
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
    dino: Encoder | Path | str | None = None,
    ground: Sequence[int] = (255, 255, 255),
    reference_things: str | None = None,
    encoders: Sequence[str | Instrument] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Score the PNGs of a folder.

    The packaged judges and CLIP score images of the embedded bases only (judges that are given score all), and concepts
    only where the judge finds the reference's own; else scores are None and "notes" says why (`evaluation.validity`).
    Images that cannot be decoded are listed under "unreadable" and left out.

    Args:
        folder: Images, as `impasto generate` writes them.
        style_of: The art world's style that the images should have; without it the scores that need it are None.
        concepts: File with one label per image, in name order; default: the label before the style in each PNG's
            prompt, None if there is none (`labels.Labels.concept`).
        reference: The training image; default: that of the one style folder named in the PNGs, if it still holds the
            weights that generated them.
        reference_concept: Label of the reference's object; default: the concept of the style folder's (first) caption.
        base_images: Folder with images of the same prompts, each as often, from the base without adapter; scored the
            same way, under "base".
        judges: Default: the packaged ones.
        encoder: "clip" (the packaged small CLIP), a folder, a hub id, or None.
        out: Where the result is also written, atomically; default: `folder/scores.json`. An existing file is replaced
            only if `evaluate` wrote it.
        dino: A folder or hub id of an encoder of images, for one more cosine with the reference.
        ground: r, g, b of the true images' plain ground.
        reference_things: "teapot; lion": labels of the things that a reference of several shows; default: those of the
            style folder's concepts.json. Their leak is under "scene_leak", see `evaluation.scene_leak`.
        encoders: More encoders, "NAME" or "NAME=SOURCE" (`evaluation.encoders.ENCODERS`), or loaded ones.
        device: Of these encoders.

    Returns:
        Every score of `scores.SCORES` as its mean over the images (None if unknown), "interval" (95 %, [low, high]) and
        "n" per score, the same under "true" (true images of the same cells) and "base" (None if not given), "images" (a
        row per image), "notes" (missing scores and the reasons), "encoders": {name: {"source", "version", "about",
        "scores": {score: {"mean", "interval", "n"}}, "base": the same of the base's images, or None}}.

    Raises:
        UserError: On bad input.
    """
    target = _target(Path(folder), out)
    instruments = load_all(encoders, device)
    samples, unreadable = read_readable(folder)
    base, unsure = ([], []) if base_images is None else _base(base_images, samples, len(unreadable))
    packaged = judges is None
    judges = Judges.load() if judges is None else judges
    labels = Labels.from_meta(load_meta())
    expected, notes = _concepts(samples, concepts, labels, unreadable)
    trained, found = _reference(samples, reference, reference_concept, labels)
    style = _style(style_of, judges)
    truths = {} if style is None else true_pictures(style, [c for c in expected if c is not None], ground)
    judged, invalid = _judged(samples if packaged else [], judges, trained, style)
    if not judged and encoder == "clip":
        encoder = None
    scorer = Scorer(
        judges, _encoder(encoder), style, trained.image, trained.concept, truths, _encoder(dino), judged=judged
    )
    rows = scorer.rows((sample.image for sample in samples), expected, [sample.prompt for sample in samples])
    run = None if reference_things else _style_folder(samples)[0]
    leak, unmeasured = measure_scene_leak(
        samples, base, find_things(reference_things, run, labels), judges if judged == "all" else None, labels
    )
    by_encoder = {one.name: _encoder_scores(one, samples, base, trained.image) for one in instruments}
    result = {
        "folder": str(folder),
        "images_scored": len(samples),
        "unreadable": [str(error) for error in unreadable.values()],
        "style_of": style_of,
        "reference": trained.describe(labels),
        "judges": {which: judges.card[which]["sha256"] for which in ("style", "concept") if which in judges.card},
        "encoder": scorer.encoder.name if scorer.encoder else None,
        "encoder_version": scorer.encoder.version if scorer.encoder else None,
        "dino": scorer.dino.name if scorer.dino else None,
        "dino_version": scorer.dino.version if scorer.dino else None,
        "sampling": _sampling(samples),
        **(scores := means(rows)),
        **_ranges(scorer, scores),
        "true": _true_means(scorer, samples, expected),
        "base": _base_means(scorer, base, concepts, labels),
        "scene_leak": leak,
        "encoders": {name: found for name, (found, _) in by_encoder.items()},
        "notes": _unreadable_note(unreadable, len(samples))
        + invalid
        + notes
        + unsure
        + found
        + unmeasured
        + _notes(style_of, expected, truths, trained, leak is not None),
        "images": [
            {"file": s.path.name, "prompt": s.prompt, **row}
            | ({"encoders": {name: own[i] for name, (_, own) in by_encoder.items()}} if by_encoder else {})
            for i, (s, row) in enumerate(zip(samples, rows, strict=True))
        ],
    }
    with atomic(target) as path:
        # a path that is not UTF-8 is escaped
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return result


def _encoder_scores(
    instrument: Instrument, samples: Sequence[Sample], base: Sequence[Sample], reference: Image.Image | None
) -> tuple[dict[str, Any], list[encoder_scores.Row]]:
    """(an entry of "encoders", a row per image)."""

    def rows(of: Sequence[Sample]) -> list[encoder_scores.Row]:
        prompts = [sample.prompt for sample in of]
        return encoder_scores.score(instrument, encoder_scores.Images(of), prompts, [reference] if reference else [])

    own = rows(samples)
    found = encoder_scores.describe(instrument) | {"scores": encoder_scores.summary(own)}
    return found | {"base": encoder_scores.summary(rows(base)) if base else None}, own


def _unreadable_note(unreadable: Mapping[int, UserError], read: int) -> list[str]:
    """How many images cannot be read, the first three named."""
    if not unreadable:
        return []
    named = "; ".join(str(error) for error in list(unreadable.values())[:3])
    more = f"; and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    return [f"{len(unreadable)} of {read + len(unreadable)} images cannot be read and are left out: {named}{more}"]


def _sampling(samples: Sequence[Sample]) -> dict[str, Any]:
    """Sampling settings in the images' metadata: one value if all agree, else the list of distinct values."""
    found: dict[str, list[Any]] = {}
    for sample in samples:
        meta = sample.meta | {"strength": [style.get("strength") for style in sample.meta.get("styles") or ()]}
        for key in ("strength", "guidance", "style_guidance", "base_guidance", "negative_prompt"):
            if meta.get(key) not in (None, [], *found.get(key, [])):
                found.setdefault(key, []).append(meta[key])
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def _target(folder: Path, out: Path | str | None) -> Path:
    """The output file. UserError when the folder is a style's or a demo's, or a foreign file would be replaced."""
    for mark, what, images in (("recipe.toml", "style", "images"), ("demo.json", "demo", "base/images")):
        if (folder / mark).is_file():
            raise UserError(f"{folder} is the folder of a {what}: give that of its images, such as {folder / images}")
    target = Path(out) if out is not None else folder / "scores.json"
    if target.exists():
        from impasto.sampling.output import scored_here

        if not scored_here(target):
            raise UserError(f"{target} was not written by `impasto evaluate` and stays: give another --out")
    return target


@dataclass(frozen=True)
class ReferenceInfo:
    """The training image and its concept; None: unknown."""

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


def _concepts(
    samples: Sequence[Sample], file: Path | str | None, labels: Labels, unreadable: Collection[int] = ()
) -> tuple[list[int | None], list[str]]:
    """(concepts of the samples, notes). unreadable: positions of files that are not among the samples but have a line
    in `file`."""
    if file is not None:
        found = read_concepts(file, len(samples) + len(unreadable), labels)
        return [concept for i, concept in enumerate(found) if i not in unreadable], []
    found = concepts_of([sample.prompt for sample in samples], labels)
    missing = sum(sample.prompt is None for sample in samples)
    unlabelled = sum(concept is None for concept in found) - missing
    notes, effect = [], "their concept scores are null (give --concepts)"
    if missing:
        notes.append(f"{missing} of {len(samples)} images contain no prompt: {effect}")
    if unlabelled:
        notes.append(f"{unlabelled} of {len(samples)} prompts have no label of a concept before their style: {effect}")
    return found, notes


def _style(name: str | None, judges: Judges) -> int | None:
    if name is None:
        return None
    if name not in judges.style_names:
        hint = nearest(name, judges.style_names)
        raise UserError(f"unknown style {name!r}: {hint}; for any other style give --reference image.png")
    return judges.style_names.index(name)


def _reference(
    samples: Sequence[Sample], path: Path | str | None, concept: str | None, labels: Labels
) -> tuple[ReferenceInfo, list[str]]:
    """The given reference, else that of the style folder; and notes."""
    run, notes = (None, []) if path is not None and concept else _style_folder(samples)
    if path is None and run is not None and (run / "reference.png").is_file():
        path = run / "reference.png"
    captioned = [labels.concept(caption) for caption in ([] if run is None else _captions(run))]
    named = labels.named(concept) if concept else captioned[0] if captioned else None
    if named is not None and not concept and len(set(captioned)) > 1:
        notes.append(f"the style was trained on several concepts: leakage is of the first, {labels.names[named]}")
    if path is None:
        return ReferenceInfo(concept=named), notes
    return ReferenceInfo(Path(path), open_image(Path(path))[0], named), notes


def _style_folder(samples: Sequence[Sample]) -> tuple[Path | None, list[str]]:
    """The style folder that generated all images, if their metadata name exactly one and it exists with the same
    weights hash; a note if its weights differ."""
    named = {tuple(_path_and_hash(style) for style in sample.meta.get("styles") or ()) for sample in samples}
    one = next(iter(named)) if len(named) == 1 else ()
    if len(one) != 1 or not Path(one[0][0]).is_dir():
        return None, []
    path, expected_hash = one[0]
    if expected_hash and expected_hash != _weights_hash(path):
        note = f"{path!r} no longer holds the style that generated the images: its reference and caption are not used"
        return None, [note]
    return Path(path), []


def _path_and_hash(style: dict[str, Any]) -> tuple[str, str]:
    return str(style.get("path")), str(style.get("hash") or "")


def _weights_hash(run: str) -> str | None:
    """The sha256 of a style's weights, None if there are none."""
    try:
        return style_hash(run)
    except UserError:
        return None


def _captions(run: Path) -> list[str]:
    """A run's training captions from its recipe.toml, [] if it has none or is damaged."""
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
        return captions.of_run(recipe, recipe.get("impasto") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _base(folder: Path | str, samples: Sequence[Sample], missing: int) -> tuple[list[Sample], list[str]]:
    """The base's images, and a note if prompts are unknown. UserError when their prompts differ from the samples'.

    missing: images beside the samples that cannot be read; the base may have as many more.
    """
    base = read_folder(folder)
    ours, theirs = Counter(sample.prompt for sample in samples), Counter(sample.prompt for sample in base)
    if None in ours | theirs:
        return base, ["some images contain no prompt: whether the base's images have the same prompts is unknown"]
    if (odd := (ours - theirs) + (theirs - ours)) and ((ours - theirs) or odd.total() > missing):
        raise UserError(
            f"{folder} does not have the same prompts, each as often: {next(iter(odd))!r} differs; generate its images "
            "with the base alone, or leave out --base-images"
        )
    return base, []


def _judged(
    samples: Sequence[Sample], judges: Judges, trained: ReferenceInfo, style: int | None
) -> tuple[Literal["all", "style", ""], list[str]]:
    """Which of the judges' scores are valid (`Scorer.judged`), and the reason for others in a note. samples: whose base
    is checked."""
    if foreign := check_bases([sample.meta for sample in samples]):
        return "", [foreign]
    if style is not None or trained.image is None or trained.concept is None:
        return "all", []
    unknown = check_reference(judges, trained.image, trained.concept)
    return ("style", [unknown]) if unknown else ("all", [])


def _ranges(scorer: Scorer, scores: dict[str, Any]) -> dict[str, Any]:
    """ "ranges": floor and ceiling of each cosine with the reference; "reference_style": where the images lie between
    them, by the judge's style features, else by an encoder's."""
    if scorer.reference is None:
        return {"ranges": {}, "reference_style": None}
    models = {
        "style_cosine": scorer.judges if scorer.judged else None,
        "dino_i_reference": scorer.dino,
        "clip_i_reference": scorer.encoder,
    }
    ranges = {name: similarity_range(scorer.reference, model) for name, model in models.items() if model is not None}
    name = next(iter(ranges), None)
    return {"ranges": ranges, "reference_style": None if name is None else between(scores[name], ranges[name])}


def _encoder(encoder: Encoder | Path | str | None) -> Encoder | None:
    if encoder is None or isinstance(encoder, Encoder):
        return encoder
    return load_encoder() if encoder == "clip" else load_encoder(encoder)


def _true_means(scorer: Scorer, samples: Sequence[Sample], expected: Sequence[int | None]) -> dict[str, Any] | None:
    """The mean scores of the true images of the same cells, None if none is available."""
    cells = [(sample.prompt, c) for sample, c in zip(samples, expected, strict=True) if c in scorer.truths]
    if not cells:
        return None
    concepts = [concept for _, concept in cells if concept is not None]
    images = [scorer.truths[concept] for concept in concepts]
    return means(scorer.rows(images, concepts, [prompt for prompt, _ in cells], true=True))


def _base_means(
    scorer: Scorer, samples: Sequence[Sample], concepts: Path | str | None, labels: Labels
) -> dict[str, Any] | None:
    if not samples:
        return None
    expected, _ = _concepts(samples, concepts, labels)
    return means(scorer.rows((sample.image for sample in samples), expected, [sample.prompt for sample in samples]))


def _notes(
    style_of: str | None, expected: Sequence[int | None], truths: dict, trained: ReferenceInfo, scene: bool
) -> list[str]:
    """scene: the leak of the reference's things is known."""
    notes = []
    if style_of is None:
        notes.append("no --style-of: style scores and comparisons with true images are null")
    missing = {concept for concept in expected if concept is not None} - truths.keys()
    if style_of is not None and missing:
        notes.append(f"{len(missing)} concepts have no true image in {style_of} here: they are not paired")
    if trained.image is None:
        notes.append("no reference image known: its cosines are null (give --reference)")
    if trained.concept is None and not scene:
        notes.append("the reference's concept is unknown: leakage is null (give --reference-concept)")
    return notes
