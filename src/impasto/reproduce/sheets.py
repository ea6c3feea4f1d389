"""Images of a claim's arms side by side, each row from the same noise; from the cache of the machine that ran them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from impasto.contact_sheet import sheet
from impasto.files import atomic, cache_dir
from impasto.reproduce.cells import Cell
from impasto.reproduce.claims import Claim

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

ROWS = 6
SIDE = 96


def save_sheet(campaign: "Campaign", claim: Claim, size: str, file: Path) -> bool:
    """Write the images of `claim.sheet` in cells of a size; False, with an earlier file left alone, unless at least two
    arms have images here. Units that lack an arm's images are left out."""
    arms = [arm for arm in claim.sheet if arm in campaign.specs]
    cells = {arm: {cell.unit: cell for cell in campaign.cells_of(arm, size)} for arm in arms}
    there = {
        arm: {unit: folder for unit, cell in own.items() if (folder := images_of(cell)).is_dir()}
        for arm, own in cells.items()
    }
    shown = [arm for arm in arms if there[arm]]
    units = [unit for unit in next(iter(cells.values()), {}) if all(unit in there[arm] for arm in shown)]
    if len(shown) < 2 or not units:
        return file.is_file()
    rows = dict(prompt_rows(cells[shown[0]], units))
    pictures = {
        label: [Image.open(there[arm][unit] / f"{i:04d}.png").convert("RGB") for arm in shown]
        for label, (unit, i) in rows.items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        sheet(pictures, shown, cell=SIDE).save(temporary, format="PNG", optimize=True)
    return True


def images_of(cell: Cell) -> Path:
    """Where a cell's images lie."""
    return cache_dir("reproduce", cell.spec["base"][:12], cell.name, "images")


def prompt_rows(cells: dict[str, Cell], units: Sequence[str]) -> Iterator[tuple[str, tuple[str, int]]]:
    """(label, (unit, number of the prompt's first image)) of up to ROWS prompts, evenly over the units."""
    per_unit = max(1, ROWS // len(units))
    for unit in units[:ROWS]:
        prompts = cells[unit].spec["prompts"]
        for k in range(n := min(per_unit, len(prompts))):
            i = k * len(prompts) // n
            style = cells[unit].spec["style"]
            first = i * cells[unit].spec.get("count", 1)
            yield f"{style}: {prompts[i].partition(',')[0]}", (unit, first)
