"""Other methods as folders of images, and a vote set of pairs with them.

    OUT/others/NAME/metadata.jsonl    {"file_name": "0.png", "text": "a prompt of the claims"} for each image

is an arm "other: NAME" of claim N9. `OUT/others/prompts.jsonl` (`write_prompts`) has the prompts of each unit, with its
reference beside it. OUT/votes is a vote set (`evaluation.votes`): one image of each of two methods and the reference.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from impasto.data import references
from impasto.errors import UserError
from impasto.evaluation import votes
from impasto.files import atomic
from impasto.reproduce.claims import Arm, Claim, Compare, Reading
from impasto.reproduce.instastyle_world import reference_image
from impasto.reproduce.sheets import images_of

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

OTHERS, METADATA, PROMPTS = "others", "metadata.jsonl", "prompts.jsonl"
PAIRS = 30


def other_arms(out: Path) -> dict[str, Arm]:
    """An arm per folder in `out/others`. Raises UserError for one without a readable metadata.jsonl."""
    folders = sorted(path for path in (out / OTHERS).glob("*") if path.is_dir())
    return {
        f"other: {folder.name}": Arm(
            f"{folder.name}, images of {folder.name}/",
            how="images",
            options={"folder": str(folder), "sha256": digest(folder)},
            where="single",
        )
        for folder in folders
    }


def with_others(claims: Sequence[Claim], arms: Mapping[str, Arm]) -> tuple[Claim, ...]:
    """The claims, N9 with a reading for each of the arms."""

    def compares(arm: str) -> tuple[Compare, ...]:
        weights = {"single: score": 1.0, arm: -1.0}
        return tuple(
            Compare(f"single: score has more {name} than {arm}", weights, name) for name in ("probability", "text")
        )

    readings = tuple(Reading(arm, compares(arm), ours=True) for arm in arms)
    return tuple(
        replace(claim, readings=(*claim.readings, *readings), sheet=(*claim.sheet, *arms))
        if claim.id == "N9"
        else claim
        for claim in claims
    )


def read_metadata(folder: Path) -> dict[str, Path]:
    """{prompt: image} of a method's folder. Raises UserError where the file is missing or a line is wrong."""
    file = folder / METADATA
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): write a line {{file_name, text}} per image") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found[row["text"]] = folder / row["file_name"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file}, line {number}: write {{file_name, text}}") from None
    return found


def digest(folder: Path) -> str:
    """sha256 over prompts and files."""
    found = hashlib.sha256()
    for prompt, file in sorted(read_metadata(folder).items()):
        if not file.is_file():
            raise UserError(f"{folder / METADATA} names {file.name}, which is not there")
        found.update(prompt.encode() + file.read_bytes())
    return found.hexdigest()


def images_of_unit(folder: Path, spec: Mapping[str, Any]) -> list[Image.Image]:
    """The method's images of a unit's prompts, in order. Raises UserError where one is missing."""
    known = read_metadata(folder)
    missing = [prompt for prompt in spec["prompts"] if prompt not in known]
    if missing:
        raise UserError(f"{folder / METADATA} lacks {len(missing)} prompts of this cell, the first: {missing[0]!r}")
    return [references.read(known[prompt]).image for prompt in spec["prompts"]]


def write_prompts(out: Path, units: Mapping[str, Mapping[str, Any]]) -> None:
    """`out/others/prompts.jsonl` and the references, for whoever runs another method."""
    folder = out / OTHERS
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for unit, spec in units.items():
        name = f"reference-{spec['style']}-{spec['reference']}.png".replace(" ", "-")
        with atomic(folder / name) as file:
            reference_image(spec).save(file, "PNG")
        row = {"unit": unit, "reference": name, "caption": spec["caption"], "prompts": spec["prompts"]}
        rows.append(json.dumps(row, ensure_ascii=False))
    with atomic(folder / PROMPTS) as file:
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_pairs(campaign: "Campaign", size: str, arm: str, others: Sequence[str], count: int = PAIRS) -> dict[str, int]:
    """Pairs of `arm` and each of `others` as a vote set, `campaign.out/votes` (`evaluation.votes`); {method: number of
    new pairs}. `count` for each, spread evenly over the cells; cells without images on this machine are left out."""
    written = {}
    for other in others:
        theirs = {cell.unit: cell for cell in campaign.cells_of(other, size)}
        cells = [cell for cell in campaign.cells_of(arm, size) if cell.unit in theirs]
        folders = {cell.unit: {arm: images_of(cell), other: images_of(theirs[cell.unit])} for cell in cells}
        cells = [cell for cell in cells if all(folder.is_dir() for folder in folders[cell.unit].values())]
        written[other] = 0
        for k, cell in enumerate(cells):
            own = (k + 1) * count // len(cells) - k * count // len(cells)
            rows = [
                (prompt, 0, {name: folder / f"{i:04d}.png" for name, folder in folders[cell.unit].items()})
                for i, prompt in enumerate(cell.spec["plain"])
            ]
            picture = reference_image(cell.spec)
            found = votes.add_pairs(campaign.out / "votes", rows, picture, cell.unit, own, only=arm)
            written[other] += sum(found["pairs"].values())
    return written
