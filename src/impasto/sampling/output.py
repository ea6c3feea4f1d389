"""The folder of generated images: what may be written there, and what an earlier command left."""

from collections.abc import Sequence
from pathlib import Path

from impasto.errors import UserError
from impasto.files import read_json_or_empty


def next_number(folder: Path) -> int:
    """The number of the first new image: after the last one that is there."""
    return 1 + max((int(file.stem) for file in folder.glob("*.png") if file.stem.isdecimal()), default=-1)


def check_targets(folder: Path, total: int, references: Sequence[Path] = ()) -> None:
    """For `--replace`: raise UserError where one of `total` new images would replace one that `generate` did not write,
    or where a reference, an earlier image in that folder, would be removed."""
    for file in targets(folder, total):
        if file.exists() and not drawn_here(file):
            raise UserError(
                f"{str(file)!r} is a picture that impasto did not draw: use another --out, it stays as it is"
            )
    doomed = {file.resolve() for file in (*targets(folder, total), *leftovers(folder))}
    for reference in references:
        if reference.resolve() in doomed:
            raise UserError(f"the reference {str(reference)!r} lies in --out, and would be removed: use another --out")


def targets(folder: Path, total: int) -> list[Path]:
    """The files of `total` new pictures."""
    return [folder / f"{i:04d}.png" for i in range(total)]


def leftovers(folder: Path) -> list[Path]:
    """An earlier command's pictures and the scores of them."""
    found = [file for file in folder.glob("*.png") if file.stem.isdecimal()]
    gone = [file for file in sorted(found) if file.name == f"{int(file.stem):04d}.png" and drawn_here(file)]
    return gone + ([folder / "scores.json"] if scored_here(folder / "scores.json") else [])


def clear_leftovers(folder: Path) -> list[str]:
    """Remove an earlier command's pictures and the scores of them; returns their names. What impasto did not write
    stays."""
    gone = leftovers(folder)
    for file in gone:
        file.unlink()
    return [file.name for file in gone]


def drawn_here(file: Path) -> bool:
    """Whether a PNG says that `generate` drew it."""
    from impasto.sampling.png import read_png_metadata

    return {"prompt", "seed", "base_hash"} <= read_png_metadata(file).keys()


def scored_here(file: Path) -> bool:
    """Whether a file is what `evaluate` writes."""
    return "images_scored" in read_json_or_empty(file)
