"""Folders of pictures as people have them: captions beside the pictures or in metadata.jsonl, masks, repeats.

    style/a.png  style/a.txt  style/a.mask.png     a picture, its caption, its loss mask
    style/night/b.jpg  style/masks/night/b.png     subfolders; masks in folders of that name
    style/metadata.jsonl                           {"file_name": "night/b.jpg", "text": "..."} (HF imagefolder), maybe
                                                   with "teacher_text", the caption for the teacher of a distillation
    style/10_wibble/c.png                          kohya's form: counts 10 times, "wibble" is its caption if it has none

Files are listed by their names, never in the order in which the disk holds them. What a name ends in, and "mask" and
"masks", may be written in any case. Hidden files and every other kind of file are passed over.
"""

import json
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from impasto.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
Texts = tuple[str, str | None]
"""A caption, and the teacher's where there is one."""
KOHYA = re.compile(r"(\d{1,3})_(.+)")
TXT = tuple(map("".join, product(".", "tT", "xX", "tT")))
NO_CAPTION = {"readme", "license", "licence", "notice", "credits"}


@dataclass(frozen=True)
class Entry:
    """A picture file. caption: its own, None when it has none. spare: what its folder's name offers as a caption.
    teacher_caption: for the teacher of a distillation."""

    path: Path
    caption: str | None = None
    repeats: int = 1
    mask: Path | None = None
    spare: str | None = None
    teacher_caption: str | None = None


def bad(message: str, skip: bool) -> None:
    """Raise UserError, or warn that it is left out."""
    if not skip:
        raise UserError(f"{message}; --skip-bad leaves such things out")
    warnings.warn(f"{message}: left out", stacklevel=3)


def listing(folder: Path, skip: bool = False) -> list[Entry]:
    """The pictures of a folder and its subfolders, by name. Raises UserError on what cannot be meant, see `bad`."""
    files = walk(folder, skip)
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
    told: dict[Path, Texts] = {}
    for file in (f for f in files if f.name.lower() == "metadata.jsonl"):
        told |= metadata(file, set(pictures), told, skip)
    stems = {picture.with_suffix("") for picture in pictures}
    texts = {f: f.with_suffix("") for f in files if f.suffix in TXT}
    for orphan in (f for f, stem in texts.items() if stem not in stems):
        if orphan.stem.lower() not in NO_CAPTION:
            bad(f"the caption file {str(orphan)!r} has no picture of that name beside it: rename or remove it", skip)
    for owner in sorted(masks.keys() - stems):
        bad(f"the mask {str(masks[owner])!r} has no picture: rename or remove it", skip)
    captioned = set(texts.values())
    entries = (
        entry(picture, folder, told.get(picture), masks.get(stem), skip, stem in captioned)
        for picture in pictures
        for stem in [picture.with_suffix("")]
    )
    return [found for found in entries if found]


def walk(folder: Path, skip: bool) -> list[Path]:
    """All files of a folder and its subfolders that are not hidden, by name. Links are followed after what lies in the
    folder itself, and no folder is read twice. Raises UserError on a folder or a link that leads nowhere, see `bad`."""
    files, seen, roots = [], set(), [folder]

    def told(error: OSError) -> None:
        bad(f"the folder {str(error.filename)!r} cannot be read ({error.strerror})", skip)

    while roots:
        for place, folders, names in os.walk(roots.pop(0), onerror=told):
            status = Path(place).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [link for name in folders if (link := Path(place, name)).is_symlink()]
            for file in sorted(Path(place, name) for name in names if not name.startswith(".")):
                try:
                    if stat.S_ISREG(file.stat().st_mode):
                        files.append(file)
                except OSError as error:
                    what = "is a link that leads nowhere" if file.is_symlink() else f"cannot be read ({error.strerror})"
                    bad(f"{str(file)!r} {what}: mend or remove it", skip)
    return sorted(files, key=Path.as_posix)


def entry(
    picture: Path, folder: Path, told: Texts | None, mask: Path | None, skip: bool, captioned: bool
) -> Entry | None:
    """One picture of a folder; None when its captions are bad and shall be skipped. captioned: there is a .txt."""
    try:
        own = sidecar(picture) if captioned else None
        if own is not None and told is not None and own != told[0]:
            raise UserError(
                f"{str(picture)!r} has two captions, in {picture.stem}.txt and in metadata.jsonl: remove one"
            )
    except UserError as error:
        bad(str(error), skip)
        return None
    parents = [folder.resolve().name, *picture.relative_to(folder).parts[:-1]]
    kohya = next((match for name in reversed(parents) if (match := KOHYA.fullmatch(name))), None)
    text, teacher_text = (own, None) if told is None else told
    found = Entry(picture, text, mask=mask, teacher_caption=teacher_text)
    return replace(found, repeats=max(1, int(kohya[1])), spare=kohya[2].replace("_", " ")) if kohya else found


def singles(pictures: Sequence[Path], captioned: bool) -> list[Entry]:
    """Pictures given by their names, with the masks beside them, and the captions when they have none yet."""
    masks = {folder: near_masks(folder) for folder in {picture.parent for picture in pictures}}
    return [
        Entry(
            picture,
            None if captioned else sidecar(picture),
            mask=masks[picture.parent].get(picture.with_suffix("")),
        )
        for picture in pictures
    ]


def near_masks(folder: Path) -> dict[Path, Path]:
    """The masks in a folder, or in its folder masks, by their pictures without suffix; of two the first by name."""
    near = sorted(f for names in ("*.[mM][aA][sS][kK].*", "[mM][aA][sS][kK][sS]/*") for f in folder.glob(names))
    found: dict[Path, Path] = {}
    for file in near:
        owner = masked(file, folder) if file.suffix.lower() in SUFFIXES else None
        if owner is not None:
            found.setdefault(owner, file)
    return found


def sidecar(picture: Path) -> str | None:
    """The caption in the .txt beside a picture, None when there is none. Raises UserError when it says nothing, or
    two spellings of the name say two things."""
    found = {text: file for end in TXT if (text := words(file := picture.with_suffix(end), picture))}
    if len(found) > 1:
        names = " and ".join(file.name for file in found.values())
        raise UserError(f"{str(picture)!r} has two captions, in {names}: remove one")
    return next(iter(found), None)


def words(file: Path, picture: Path) -> str | None:
    """The text of a caption file, None when there is no such file. Raises UserError when it is empty or no text."""
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


def masked(file: Path, folder: Path) -> Path | None:
    """The picture (without its suffix) that a mask file belongs to; None when it is not a mask."""
    *parents, _ = file.relative_to(folder).parts
    stem = file.stem[:-5] if file.stem.lower().endswith(".mask") else file.stem
    places = [i for i, name in enumerate(parents) if name.lower() == "masks"]
    if places:
        parents.pop(places[-1])
    elif stem == file.stem:
        return None
    return folder.joinpath(*parents, stem)


def metadata(file: Path, pictures: set[Path], told: Mapping[Path, Texts], skip: bool) -> dict[Path, Texts]:
    """Captions by picture out of a metadata.jsonl; a wrong line is named by its number. told: by others before it."""
    found: dict[Path, Texts] = {}
    for number, line in json_lines(file):
        problem, picture, text = row(line, file.parent, pictures)
        if not problem and picture in found:
            problem = f"{picture.name!r} was described before"
        elif not problem and told.get(picture, text) != text:
            problem = f"{picture.name!r} has another caption in another metadata.jsonl: remove one"
        if problem:
            bad(f"{str(file)!r}, line {number}: {problem}", skip)
        else:
            found[picture] = text
    return found


def json_lines(file: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines of a JSONL file that are not blank. Raises UserError where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # JSON strings may hold what splitlines() breaks at
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{str(file)!r} cannot be read as UTF-8 text") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def json_texts(line: str, required: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """(what is wrong or "", texts by key) of one JSON object."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no valid JSON ({error.msg})", {}
    except RecursionError:
        return "nested too deeply", {}
    if not isinstance(values, dict):
        return f"not an object like {json.dumps(dict.fromkeys(required, '...'))}", {}
    keys = [*required, *(key for key in optional if key in values)]
    for key in keys:
        if not isinstance(values.get(key), str) or not values[key].strip():
            return f"{key!r} is missing or empty", {}
    return "", {key: values[key] for key in keys}


def row(line: str, folder: Path, pictures: set[Path]) -> tuple[str, Path, Texts]:
    """(what is wrong or "", picture, its captions) of one line."""
    problem, values = json_texts(line, ("file_name", "text"), ("teacher_text",))
    if problem:
        return problem, folder, ("", None)
    picture = folder / values["file_name"]
    if picture not in pictures:
        return f"there is no picture {values['file_name']!r} in {str(folder)!r}", folder, ("", None)
    return "", picture, (" ".join(values["text"].split()), values.get("teacher_text"))


def named(paths: Sequence[Path], most: int = 3) -> str:
    """The first few names, for messages."""
    return ", ".join(path.name for path in paths[:most]) + (", .." if len(paths) > most else "")
