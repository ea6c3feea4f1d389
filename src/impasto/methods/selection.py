"""Candidates: images that a method generates, to train on a selection of them: by scores, at random or by a person.

candidates/01.png ...      the images, with a numbered sheet, sheet.png
state/candidates.json      the stage that made them
state/selection.json       {"selected": numbers of the selected ones, from 1}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from impasto.contact_sheet import sheet
from impasto.errors import UserError
from impasto.evaluation.encoders import Encoder
from impasto.files import atomic
from impasto.methods.stages import Stages
from impasto.progress import Progress, ignore
from impasto.training.sheet import read_run
from impasto.training.train import train

CANDIDATES = "candidates"
SHEET = f"{CANDIDATES}/sheet.png"


@dataclass(frozen=True)
class Candidate:
    """file: in the style folder. thing: what the prompt has in place of the reference's object."""

    file: str
    thing: str
    prompt: str


def list_candidates(prompts: Sequence[tuple[str, str]]) -> list[Candidate]:
    """A candidate for each (thing, prompt), numbered from 1."""
    digits = max(2, len(str(len(prompts))))
    return [Candidate(f"{CANDIDATES}/{i:0{digits}d}.png", *own) for i, own in enumerate(prompts, 1)]


def missing_candidates(stages: Stages, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose image is not there, or is not as the finished stage left it."""
    damaged = stages.damaged("candidates")
    return [one for one in candidates if one.file in damaged or not (stages.folder / one.file).is_file()]


def open_image(file: Path, side: int | None = None) -> Image.Image:
    """An image as RGB, shrunk to at most `side` pixels where that is given."""
    with Image.open(file) as image:
        found = image.convert("RGB")
    if side is not None:
        found.thumbnail((side, side))
    return found


def write_sheet(
    stages: Stages,
    candidates: Sequence[Candidate],
    images: Sequence[Image.Image],
    title: str,
    reference: Image.Image,
    wrap: int,
) -> None:
    """Write the numbered sheet of the candidates, `wrap` in a row."""
    numbered = [f"{i} {one.thing}" for i, one in enumerate(candidates, 1)]
    with atomic(stages.folder / SHEET) as file:
        sheet({"": images}, numbered, wrap=wrap, title=title, reference=reference).save(file, "PNG")


def keep_selection(
    stages: Stages, select: str, inputs: Mapping[str, Any], choose: Callable[[], tuple[list[int], dict[str, Any]]]
) -> list[int] | None:
    """Numbers of the selected candidates, from 1; None where `select` is "human" and a person has to select them first.

    inputs: settings that the selection depends on beside the images. choose: () -> (numbers, results for the record);
    called unless the selection is recorded.
    """
    files = {"candidates": (stages.read("candidates") or {}).get("files")}
    if select == "human":
        record = stages.read("selection", files)
        return record["selected"] if record else None
    if record := stages.read("selection", {**files, **inputs}):
        return record["selected"]
    numbers, results = choose()
    return stages.write("selection", {**files, **inputs}, [], selected=numbers, **results)["selected"]


def encode_pairs(images: Sequence[Image.Image], prompts: Sequence[str], encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Unit embeddings (n, D) of images and of their prompts. Raises UserError for an encoder without a text tower."""
    found, texts = encoder.images(images), encoder.texts(prompts)
    if texts is None:
        raise UserError(f"encoder {encoder.name} reads no text, which content is scored by: name a CLIP")
    return found, texts


def ask_for_selection(out: Path, count: int, n: int) -> dict[str, Any]:
    """The result of a run that waits for a person to select some n of `count` candidates."""
    example = " ".join(str(1 + i * count // n) for i in range(n))
    return {
        "out": str(out),
        "sheet": str(out / SHEET),
        "next": f"look at the sheet, then: impasto select {out} {example}",
    }


def select(folder: Path, numbers: Sequence[int], progress: Progress = ignore) -> dict[str, Any]:
    """Select candidates of a run with `method.select` "human" by their numbers on its sheet, and go on.

    Raises UserError for a run without candidates, numbers out of range or twice, too few of them, and another selection
    than the one that was trained on.
    """
    config, _ = read_run(folder)
    config, stages, method = replace(config, out=folder), Stages(folder), config.method
    if getattr(method, "select", None) != "human":
        raise UserError(f"{str(folder)!r} is not a run of instastyle or styledrop with --select human")
    record = stages.read("candidates")
    if record is None:
        raise UserError(f"{str(folder)!r} has no candidates yet: run impasto train there first")
    check_selection(numbers, len(record["objects"]), method.least_selected)
    before, trained = stages.read("selection"), folder / method.TRAINED_IN
    if before and before["selected"] != list(numbers) and trained.exists():
        was = " ".join(map(str, before["selected"]))
        raise UserError(f"{str(folder)!r} was trained on {was}: remove {trained} to select others")
    stages.write("selection", {"candidates": record["files"]}, [], selected=list(numbers))
    return train(config, progress)


def check_selection(numbers: Sequence[int], count: int, n: int) -> None:
    """Raise UserError unless these are at least n different numbers of 1 to count."""
    if wrong := [i for i in numbers if not 1 <= i <= count]:
        raise UserError(f"there is no candidate {wrong[0]}: their numbers are 1 to {count}")
    if twice := [i for i in numbers if list(numbers).count(i) > 1]:
        raise UserError(f"candidate {twice[0]} is selected twice")
    if len(numbers) < n:
        raise UserError(f"{len(numbers)} candidates selected, and the run asks for {n}: name more")
