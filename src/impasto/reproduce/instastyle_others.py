"""Other methods as folders of images, and pairs of images for a blind vote.

    OUT/others/NAME/metadata.jsonl    {"file_name": "0.png", "text": "a prompt of the claims"} for each image

is an arm "other: NAME" of claim N9. `OUT/others/prompts.jsonl` (`write_prompts`) has the prompts of each unit, with its
reference beside it. OUT/votes/METHOD/00.png on are pairs: the reference, and one image of each of two methods in random
order; OUT/votes/METHOD/key.json says which is which.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from impasto.contact_sheet import sheet
from impasto.data import references
from impasto.errors import UserError
from impasto.files import atomic
from impasto.noise.random import generator
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
    """Pairs of `arm` and each of `others` into `campaign.out/votes`; {method: number of pairs}. Prompts that lack an
    image on this machine are left out; which comes first is drawn by the pair's number."""
    written = {}
    for other in others:
        pairs = []
        theirs = {cell.unit: cell for cell in campaign.cells_of(other, size)}
        for cell in campaign.cells_of(arm, size):
            folders = [images_of(one) for one in (cell, theirs[cell.unit])] if cell.unit in theirs else []
            if folders and all(folder.is_dir() for folder in folders):
                pairs += [(cell, i, folders) for i in range(len(cell.spec["prompts"]))]
        out = campaign.out / "votes" / other.partition(": ")[2].replace(" ", "-")
        key: dict[str, Any] = {}
        for n, (cell, i, folders) in enumerate(
            pairs[k * len(pairs) // min(count, len(pairs))] for k in range(min(count, len(pairs)))
        ):
            swapped = bool(generator(n, 0, f"vote {other}").initial_seed() % 2)
            shown = [Image.open(folder / f"{i:04d}.png").convert("RGB") for folder in folders]
            shown = shown[::-1] if swapped else shown
            prompt = cell.spec["plain"][i]
            picture = sheet(
                {prompt: shown}, ["A", "B"], cell=128, reference=reference_image(cell.spec), title="reference"
            )
            out.mkdir(parents=True, exist_ok=True)
            with atomic(out / f"{n:02d}.png") as file:
                picture.save(file, "PNG")
            key[f"{n:02d}.png"] = {"A": other, "B": arm} if swapped else {"A": arm, "B": other}
        if key:
            with atomic(out / "key.json") as file:
                file.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        written[other] = len(key)
    return written
