"""FineStyle (Zhang et al., NeurIPS 2024): concepts of one image as training pairs; guidance for style and semantics.

    concepts c_1 .. c_J of the caption, with regions     `regions.find_concepts`; concepts.json, which may be edited
    pairs {(I, t)} + {(crop_j, "c_j in {style} style")}  `data.items`: half of the draws the image, else a uniform c_j
    adapter on the attention, or keys and values alone   `training.fit`, by the settings of the run
    v = S + lambda1 [S - B] + lambda2 [S - S(n2)] + lambda_base [B - B(n1)]      `guidance.style_semantics`

The style folder holds concepts.json, the regions as an overlay (concepts.png), and in style.json the guidance by which
`generate` and the previews sample it.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from impasto.adapters.base import PLAIN_SAMPLING, check_keeps_base
from impasto.config import TrainConfig, change
from impasto.data import items
from impasto.data.concepts import (
    FILE,
    ConceptFile,
    parse_boxes,
    parse_caption,
    read_concepts,
    split_list,
    write_concepts,
)
from impasto.data.pictures import Picture, look
from impasto.data.references import load
from impasto.errors import UserError
from impasto.files import atomic, writable_folder
from impasto.methods.config import STYLE_WORDS, FineStyle
from impasto.progress import Progress, ignore
from impasto.regions import default_finder, find_concepts
from impasto.regions.overlay import overlay
from impasto.styles.defaults import style_words
from impasto.styles.parts import write_defaults
from impasto.training.fit import fit
from impasto.training.plan import describe, make_plan
from impasto.training.run_folder import check_out, previous_recipe

OVERLAY = "concepts.png"
SINGLE_THING_STRENGTH = 0.75
"""Strength of a style whose image shows one thing: without data scaling the default weights break many images at 1."""


def run(config: TrainConfig, progress: Progress = ignore, dry_run: bool = False) -> dict[str, Any]:
    """Find the concepts, train, and write the guidance; see `training.train.train`. Raises UserError."""
    check_out(config)
    if config.method.lambda1 or config.method.lambda_base:
        check_keeps_base(config.adapter, "--method.lambda1 0 --method.lambda-base 0")
    picture, caption = reference(config)
    known = known_concepts(config, picture, caption)
    if dry_run:
        return plan(config, picture, caption, known)
    if not known:
        progress("finding concepts")
    found = known or find(config, picture, caption)
    writable_folder(config.out)
    if not (config.out / FILE).exists():
        write_concepts(config.out / FILE, found)
    with atomic(config.out / OVERLAY) as temporary:
        overlay(load(picture.path).image, found).save(temporary, format="PNG")
    if previous_recipe(config.out) is None:  # later it may have been edited
        write_defaults(config.out, guidance(config.method, found), sampling(config, found))
    result = fit(change(config, concept_file=config.out / FILE), progress)
    return result | {"concepts": [concept.phrase for concept in found.concepts]}


def reference(config: TrainConfig) -> tuple[Picture, str]:
    """The one image and its caption, without the prefix. Raises UserError."""
    found = items.entries(replace(config.data, caption_prefix=""))
    if len(found) != 1:
        raise UserError(
            f"finestyle makes its training pairs of one image, and {len(found)} are given: give one --image"
        )
    return look(found[0].path), found[0].caption or ""


def known_concepts(config: TrainConfig, picture: Picture, caption: str) -> ConceptFile | None:
    """The concepts.json that is given, or in the style folder; None where there is none. Raises UserError where they
    are of another image, base, caption or flags, or differ."""
    own, given = config.out / FILE, config.data.concept_file
    files = [file for file in (own if own.exists() else None, given) if file is not None]
    contents = [read_concepts(file, picture, config.base) for file in files]
    if len(contents) == 2 and contents[0] != contents[1]:
        raise UserError(f"{str(own)!r} differs from {str(given)!r}: remove it, or leave --concept-file out")
    if not contents:
        return None
    found, where = contents[0], str(files[0])
    things, method = [concept for concept in found.concepts if concept.kind == "thing"], config.method
    boxes = parse_boxes(method.boxes)
    phrases = [
        concept.phrase for concept in parse_caption(caption, method.style_words, split_list(method.concepts)).concepts
    ]
    differs = {
        f"caption {found.caption!r}": found.caption != caption,
        f"style words {found.style!r}": method.style_words not in (None, found.style),
        "concepts": method.concepts is not None and phrases != [concept.phrase for concept in found.concepts],
        "boxes": bool(boxes) and boxes != [thing.box for thing in things],
    }
    if wrong := [what for what, other in differs.items() if other]:
        raise UserError(f"{where!r} has other {wrong[0]} than this command: remove it, or change it or the command")
    return found


def find(config: TrainConfig, picture: Picture, caption: str) -> ConceptFile:
    """The concepts with their regions; a finder that needs the base loads it."""
    method = config.method
    return find_concepts(
        picture.path,
        caption,
        config.base,
        method.finder,
        phrases=split_list(method.concepts),
        style_words=method.style_words,
        boxes=parse_boxes(method.boxes),
        device=config.device,
        precision=config.precision,
        seed=config.seed,
    )


def guidance(method: FineStyle, found: ConceptFile) -> dict[str, Any]:
    """The table "guidance" of style.json."""
    words = style_words([found.sub_prompt(concept) for concept in found.concepts]) or found.style
    null = words if method.null == STYLE_WORDS else ""
    weights = {name: getattr(method, name) for name in ("lambda1", "lambda2", "lambda_base")}
    return {"style-semantics": weights | {"n1": "", "n2": null}}


def sampling(config: TrainConfig, found: ConceptFile) -> dict[str, Any]:
    """The table "sampling" of style.json, to which `fit` adds what the run's settings state."""
    things = sum(concept.kind == "thing" for concept in found.concepts)
    weaker = {"strength": SINGLE_THING_STRENGTH} if things < 2 and config.method.lambda1 else {}
    return PLAIN_SAMPLING | weaker


def plan(config: TrainConfig, picture: Picture, caption: str, known: ConceptFile | None) -> dict[str, Any]:
    """What `run` would do, for `--dry-run`. Regions that only the base can find are not found, which the plan says."""
    method = config.method
    parsed = parse_caption(caption, method.style_words, split_list(method.concepts))
    if known is None and (method.boxes or len(parsed.things) < 2):
        known = find(config, picture, caption)
    if known is None:
        result = describe(make_plan(change(config, concept_file=None)))
        finder, phrases = method.finder or default_finder(config.base), ", ".join(c.phrase for c in parsed.concepts)
        result["data"]["advice"].append(
            f"{len(parsed.concepts)} concepts ({phrases}) become training pairs: their regions are found by {finder} "
            "when training starts; `impasto concepts find` shows them before"
        )
        return result
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        write_concepts(file, known)
        result = describe(make_plan(change(config, concept_file=file)))
    result["settings"].pop("concept_file")
    return result | {"guidance": guidance(method, known)}
