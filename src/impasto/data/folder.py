"""Folders of pictures as people have them: captions beside the pictures or in metadata.jsonl, masks, repeats.

    style/a.png  style/a.txt  style/a.mask.png     a picture, its caption, its loss mask
    style/night/b.jpg  style/masks/night/b.png     subfolders; masks in folders of that name
    style/metadata.jsonl                           {"file_name": "night/b.jpg", "text": "..."} (HF imagefolder)
    style/10_wibble/c.png                          kohya's form: counts 10 times, "wibble" is its caption if it has none

Files are listed by their names, never in the order in which the disk holds them. Hidden files and every other kind of
file are passed over.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impasto.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
KOHYA = re.compile(r"(\d{1,3})_(.+)")
NO_CAPTION = {"readme", "license", "licence", "notice", "credits"}


@dataclass(frozen=True)
class Entry:
    """A picture file. caption: its own, None when it has none. spare: what its folder's name offers as a caption."""

    path: Path
    caption: str | None = None
    repeats: int = 1
    mask: Path | None = None
    spare: str | None = None


def bad(message: str, skip: bool) -> None:
    """Raise UserError, or warn that it is left out."""
    if not skip:
        raise UserError(f"{message}; --skip-bad leaves such things out")
    warnings.warn(f"{message}: left out", stacklevel=3)


def listing(folder: Path, skip: bool = False) -> list[Entry]:
    """The pictures of a folder and its subfolders, by name. Raises UserError on what cannot be meant, see `bad`."""
    files = sorted((f for f in folder.rglob("*") if f.is_file() and not hidden(f, folder)), key=Path.as_posix)
    pictures, masks = [], {}
    for file in (f for f in files if f.suffix.lower() in SUFFIXES):
        owner = masked(file, folder)
        if owner is None:
            pictures.append(file)
        elif owner in masks:
            bad(f"{str(file)!r} and {str(masks[owner])!r} are masks of the same picture", skip)
        else:
            masks[owner] = file
    if not pictures:
        raise UserError(f"folder {str(folder)!r} holds no picture (PNG, JPEG, WebP, ...)")
    told = {}
    for file in (f for f in files if f.name == "metadata.jsonl"):
        told |= metadata(file, set(pictures), skip)
    stems = {picture.with_suffix("") for picture in pictures}
    for orphan in (f for f in files if f.suffix == ".txt" and f.with_suffix("") not in stems):
        if orphan.stem.lower() not in NO_CAPTION:
            bad(f"the caption file {str(orphan)!r} has no picture of that name beside it: rename or remove it", skip)
    for owner in sorted(masks.keys() - stems):
        bad(f"the mask {str(masks[owner])!r} has no picture: rename or remove it", skip)
    entries = (
        entry(picture, folder, told.get(picture), masks.get(picture.with_suffix("")), skip) for picture in pictures
    )
    return [found for found in entries if found]


def entry(picture: Path, folder: Path, told: str | None, mask: Path | None, skip: bool) -> Entry | None:
    """One picture of a folder; None when its captions are bad and shall be skipped."""
    try:
        own = sidecar(picture)
        if own is not None and told is not None and own != told:
            raise UserError(
                f"{str(picture)!r} has two captions, in {picture.stem}.txt and in metadata.jsonl: remove one"
            )
    except UserError as error:
        bad(str(error), skip)
        return None
    parents = [folder.resolve().name, *picture.relative_to(folder).parts[:-1]]
    kohya = next((match for name in reversed(parents) if (match := KOHYA.fullmatch(name))), None)
    found = Entry(picture, own if told is None else told, mask=mask)
    return replace(found, repeats=max(1, int(kohya[1])), spare=kohya[2].replace("_", " ")) if kohya else found


def single(picture: Path, captioned: bool) -> Entry:
    """A picture given by its name, with the mask beside it, and the caption when it has none yet."""
    near = sorted([*picture.parent.glob("*.mask.*"), *picture.parent.glob("masks/*")])
    near = [f for f in near if f.suffix.lower() in SUFFIXES]
    masks = [f for f in near if masked(f, picture.parent) == picture.with_suffix("")]
    return Entry(picture, None if captioned else sidecar(picture), mask=masks[0] if masks else None)


def sidecar(picture: Path) -> str | None:
    """The caption in the .txt beside a picture, None when there is none. Raises UserError when it says nothing."""
    file = picture.with_suffix(".txt")
    try:
        text = " ".join(file.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise UserError(f"the caption file {str(file)!r} {what}") from None
    if not text:
        raise UserError(f"the caption file {str(file)!r} is empty: say what {picture.name} shows, or remove the file")
    return text


def hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def masked(file: Path, folder: Path) -> Path | None:
    """The picture (without its suffix) that a mask file belongs to; None when it is not a mask."""
    *parents, _ = file.relative_to(folder).parts
    stem = file.stem.removesuffix(".mask")
    if "masks" in parents:
        parents.pop(len(parents) - 1 - parents[::-1].index("masks"))
    elif stem == file.stem:
        return None
    return folder.joinpath(*parents, stem)


def metadata(file: Path, pictures: set[Path], skip: bool) -> dict[Path, str]:
    """Captions by picture out of a metadata.jsonl; a wrong line is named by its number."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # JSON strings may hold what splitlines() breaks at
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{str(file)!r} cannot be read as UTF-8 text") from None
    found: dict[Path, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        problem, picture, text = row(line, file.parent, pictures)
        if not problem and picture in found:
            problem = f"{picture.name!r} was described before"
        if problem:
            bad(f"{str(file)!r}, line {number}: {problem}", skip)
        else:
            found[picture] = text
    return found


def row(line: str, folder: Path, pictures: set[Path]) -> tuple[str, Path, str]:
    """(what is wrong or "", picture, caption) of one line."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no valid JSON ({error.msg})", folder, ""
    except RecursionError:
        return "nested too deeply", folder, ""
    if not isinstance(values, dict):
        return 'not an object like {"file_name": "a.png", "text": "..."}', folder, ""
    for key in ("file_name", "text"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            return f"{key!r} is missing or empty", folder, ""
    picture = folder / values["file_name"]
    if picture not in pictures:
        return f"there is no picture {values['file_name']!r} in {str(folder)!r}", folder, ""
    return "", picture, " ".join(values["text"].split())


def named(paths: Sequence[Path], most: int = 3) -> str:
    """The first few names, for messages."""
    return ", ".join(path.name for path in paths[:most]) + (", .." if len(paths) > most else "")
