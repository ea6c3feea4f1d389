"""StyleDrop's cells: both rounds on a scene; the first round and its candidates are shared by all selections.

none     the first round alone
clip     per object the candidate nearest to its prompt, by the small CLIP
random   one per object
oracle   per object the candidate nearest to the true image of that object in that style, by the small CLIP, and of
         these the BY_HAND best: in place of the persons of the paper, who see what a style lacks

The candidates' objects are reference concepts of the style that the scene does not show: their true images are in the
package, and none of them is an evaluation concept.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from impasto.artworld import concept_index, drawn_in, load_meta, spread, style_index
from impasto.config import resolve
from impasto.evaluation.encoders import Encoder
from impasto.evaluation.truth import true_pictures
from impasto.files import cache_dir
from impasto.methods.selection import CANDIDATES, Candidate, open_image, select
from impasto.methods.stages import Stages
from impasto.methods.styledrop import BY_HAND, FIRST, clip_scores, select_at_random, select_best
from impasto.reproduce.finestyle_jobs import base_images, guidance_of, render
from impasto.reproduce.folder_jobs import content_hash
from impasto.reproduce.runner import BaseSpec
from impasto.reproduce.small_world import packaged_encoder
from impasto.sampling.png import read_png_metadata
from impasto.styles.card import CARD
from impasto.training.train import train

OBJECTS = 15
"""Objects of the candidates."""


def styledrop_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Train StyleDrop on the reference, with the arm's `selection`; sample by its `weights`."""
    assert reference is not None
    base_images(spec, place)
    selection = spec["arm"]["selection"]
    run = first_round(spec, place, reference, rounds=1 if selection == "none" else 2)
    style = run / FIRST if selection == "none" else second_round(spec, run, selection)
    render(spec, place, folder / "images.part", (f"{style}:1",), guidance_of(spec["arm"], spec))


def training_of(spec: Mapping[str, Any], **more: Any) -> Path:
    """The cache folder of a training of StyleDrop on the spec's scene, by what it depends on."""
    own = {name: spec[name] for name in ("base", "scene", "style", "caption", "words", "seed")}
    own |= {"precision": spec["sampling"]["precision"], "settings": spec["arm"]["settings"], **more}
    own["objects"] = objects_of(spec)
    folder = cache_dir("reproduce", spec["base"][:12], "styledrop", content_hash(own)[:20])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def objects_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the candidates' objects for a scene."""
    meta, shown = load_meta(), {concept_index(label) for label in spec["scene"]["things"]}
    drawn = drawn_in(style_index(spec["style"]))
    known = [c for c in meta["split"]["reference_concepts"] if c in drawn and c not in shown]
    return tuple(meta["concepts"][c]["label"] for c in spread(known, min(OBJECTS, len(known))))


def first_round(spec: Mapping[str, Any], place: BaseSpec, reference: Path, rounds: int) -> Path:
    """The style folder with the first round and, for two rounds, the candidates, made unless they are in the cache."""
    folder = training_of(spec)
    given = {key: value for key, value in spec["arm"]["settings"].items() if value is not None}
    fixed = {"image": (reference,), "caption": (spec["caption"],), "style_words": spec["words"], "seed": spec["seed"]}
    fixed |= {
        "method.objects": objects_of(spec),
        "out": folder / "style",
        "device": place.device,
        "rounds": rounds,
        "select": "human",
    }
    quiet = {"preview": False, "tensorboard": False, "quantize": "none"}
    with FileLock(folder / ".lock"):
        if rounds == 1 and (folder / "style" / FIRST / CARD).is_file():
            return folder / "style"  # of two rounds its recipe stays
        train(resolve("styledrop", place.base, **{**quiet, **given, **fixed}))
    return folder / "style"


def second_round(spec: Mapping[str, Any], run: Path, selection: str) -> Path:
    """A copy of the style folder with the second round on a selection, trained unless it is in the cache."""
    folder = training_of(spec, selection=selection)
    style, part = folder / "style", folder / "part"
    with FileLock(folder / ".lock"):
        if not (folder / "done").is_file():
            if not style.is_dir():
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(run, part)
                part.rename(style)
            select(style, numbers_of(style, spec, selection))
            (folder / "done").touch()
    return style


def numbers_of(style: Path, spec: Mapping[str, Any], selection: str) -> list[int]:
    """Numbers of the selected candidates, see the table above."""
    candidates = read_candidates(style)
    if selection == "random":
        return select_at_random(candidates, spec["seed"])
    if selection == "clip":
        return select_best(candidates, clip_scores(style, candidates, packaged_encoder()))
    scores = oracle_scores(style, candidates, style_index(spec["style"]), packaged_encoder())
    return sorted(select_best(candidates, scores), key=lambda i: -scores[i - 1])[:BY_HAND]


def read_candidates(style: Path) -> list[Candidate]:
    """The candidates of a style folder, in their order."""
    things = (Stages(style).read("candidates") or {})["objects"]
    files = sorted(file for file in (style / CANDIDATES).glob("*.png") if file.stem.isdecimal())
    prompts = [read_png_metadata(file)["prompt"] for file in files]
    return [
        Candidate(f"{CANDIDATES}/{file.name}", *own)
        for file, *own in zip(files, things, prompts, strict=True)
    ]  # fmt: skip


def oracle_scores(folder: Path, candidates: list[Candidate], style: int, encoder: Encoder) -> list[float]:
    """Cosine of each candidate with the true image of its object in the style."""
    concepts = {one.thing: concept_index(one.thing) for one in candidates}
    true = true_pictures(style, list(concepts.values()))
    truth = encoder.images([true[concepts[one.thing]] for one in candidates])
    found = encoder.images([open_image(folder / one.file) for one in candidates])
    return (found * truth).sum(1).tolist()
