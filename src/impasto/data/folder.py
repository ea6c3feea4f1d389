"""Folders of pictures as people have them: captions beside the pictures or in metadata.jsonl, masks, repeats.

    style/a.png  style/a.txt  style/a.mask.png     a picture, its caption (or a.caption), its loss mask
    style/night/b.jpg  style/masks/night/b.png     subfolders; masks in folders of that name
    style/metadata.jsonl                           {"file_name": "night/b.jpg", "text": "..."} (HF imagefolder), maybe
                                                   with "teacher_text", the caption for the teacher of a distillation
    style/10_wibble/c.png                          kohya's form: counts 10 times, "wibble" is its caption if it has none

Files are listed by their names, never in the order in which the disk holds them. What a name ends in, and "mask" and
"masks", may be written in any case, and names are compared in Unicode's composed form. Hidden files are passed over;
`companions` has what else is left out, and says so.
"""

import json
import os
import re
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impasto.data.companions import (
    CAPTIONS,
    composed,
    is_image,
    mask_owner,
    named,
    split_companions,
    stem,
    warn_unread_texts,
)
from impasto.errors import UserError

Texts = tuple[str, str | None]
"""A caption, and the teacher's where there is one."""
KOHYA = re.compile(r"(\d{1,3})_(.+)")
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
    files, left_out = split_companions(walk(folder, skip), folder)
    images = [file for file in files if is_image(file)]
    stems = {stem(image) for image in images}
    pictures, masks = [], {}
    for file in images:
        owner = mask_owner(file, folder, stems)
        if owner is None:
            pictures.append(file)
        elif owner in masks:
            bad(f"{str(file)!r} and {str(masks[owner])!r} are masks of the same picture", skip)
        else:
            masks[owner] = file
    if not pictures:
        raise UserError(f"folder {str(folder)!r} holds no picture (PNG, JPEG, WebP, ...)")
    stated: dict[Path, Texts] = {}
    tables = [file for file in files if file.name.lower() == "metadata.jsonl"]
    places = {location(picture): picture for picture in pictures} if tables else {}
    passed = {location(file) for file in (*left_out, *masks.values())} if tables else set()
    for file in tables:
        stated |= metadata(file, places, passed, stated, skip)
    stems = {stem(picture) for picture in pictures}
    texts = captions_by_stem(files)
    for orphan in (f for owner in sorted(texts.keys() - stems - set(map(stem, left_out))) for f in texts[owner]):
        if orphan.stem.lower() not in NO_CAPTION:
            bad(f"the caption file {str(orphan)!r} has no picture of that name beside it: rename or remove it", skip)
    for owner in sorted(masks.keys() - stems):
        bad(f"the mask {str(masks[owner])!r} has no picture: rename or remove it", skip)
    warn_unread_texts(files, folder, [one for one in pictures if one not in stated and stem(one) not in texts])
    several: list[Path] = []
    entries = [
        entry(picture, folder, stated.get(picture), masks.get(owner), skip, texts.get(owner, ()), several)
        for picture in pictures
        for owner in [stem(picture)]
    ]
    warn_several_lines(several)
    return [found for found in entries if found]


def warn_several_lines(files: Sequence[Path]) -> None:
    """Warn of caption files with several lines, which kohya's sd-scripts take as captions to choose from."""
    if files:
        have = "1 caption file has" if len(files) == 1 else f"{len(files)} caption files have"
        warnings.warn(
            f"{have} several lines ({named(files)}), which are read as one caption: keep one line if they are "
            "alternatives",
            stacklevel=3,
        )


def captions_by_stem(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Caption files by the `stem` of their picture."""
    found: dict[Path, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in CAPTIONS:
            found.setdefault(stem(file), []).append(file)
    return found


def location(file: Path) -> Path:
    """The file's absolute, composed path: its folder resolved, the file itself not followed where it is a link."""
    return composed(file.parent.resolve() / file.name)


def walk(folder: Path, skip: bool) -> list[Path]:
    """All files of a folder and its subfolders that are not hidden, by name. Links are followed after what lies in the
    folder itself, and no folder is read twice. Raises UserError on a folder or a link that leads nowhere, see `bad`."""
    files, seen, roots = [], set(), [folder]

    def report(error: OSError) -> None:
        bad(f"the folder {str(error.filename)!r} cannot be read ({error.strerror})", skip)

    while roots:
        for place, folders, names in os.walk(roots.pop(0), onerror=report):
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
    picture: Path,
    folder: Path,
    stated: Texts | None,
    mask: Path | None,
    skip: bool,
    texts: Sequence[Path],
    several: list[Path],
) -> Entry | None:
    """One picture of a folder; None when its captions are bad and shall be skipped. texts: its caption files; those of
    several lines are added to `several`."""
    try:
        own = sidecar(picture, texts, several)
        if own is not None and stated is not None and own != stated[0]:
            raise UserError(f"{str(picture)!r} has two captions, in {texts[0].name} and in metadata.jsonl: remove one")
    except UserError as error:
        bad(str(error), skip)
        return None
    parents = [folder.resolve().name, *picture.relative_to(folder).parts[:-1]]
    kohya = next((match for name in reversed(parents) if (match := KOHYA.fullmatch(name))), None)
    text, teacher_text = (own, None) if stated is None else stated
    found = Entry(picture, text, mask=mask, teacher_caption=teacher_text)
    return replace(found, repeats=max(1, int(kohya[1])), spare=kohya[2].replace("_", " ")) if kohya else found


def singles(pictures: Sequence[Path], captioned: bool) -> list[Entry]:
    """Pictures given by their names, with the masks beside them, and the captions when they have none yet."""
    near = {folder: files_near(folder) for folder in {picture.parent for picture in pictures}}
    masks = {folder: near_masks(files, folder) for folder, files in near.items()}
    texts = {folder: captions_by_stem(files) for folder, files in near.items()}
    several: list[Path] = []
    entries = [
        Entry(
            picture,
            None if captioned else sidecar(picture, texts[picture.parent].get(stem(picture), ()), several),
            mask=masks[picture.parent].get(stem(picture)),
        )
        for picture in pictures
    ]
    warn_several_lines(several)
    return entries


def files_near(folder: Path) -> list[Path]:
    """The files in a folder and in its folder masks, by name; none where they cannot be listed."""
    try:
        near = sorted(folder.iterdir())
        return near + [file for one in near if one.name.lower() == "masks" and one.is_dir() for file in one.iterdir()]
    except OSError:
        return []


def near_masks(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The masks among the files near a folder's pictures, by the `stem` of these; of two the first by name."""
    images = [file for file in files if is_image(file)]
    stems = {stem(image) for image in images}
    found: dict[Path, Path] = {}
    for file in sorted(images):
        owner = mask_owner(file, folder, stems)
        if owner is not None:
            found.setdefault(owner, file)
    return found


def sidecar(picture: Path, texts: Sequence[Path], several: list[Path]) -> str | None:
    """The caption in the files beside a picture, None when there is none; files of several lines are added to
    `several`. Raises UserError when one is empty, or two differ."""
    found = {words(file, picture, several): file for file in texts}
    if len(found) > 1:
        names = " and ".join(file.name for file in found.values())
        raise UserError(f"{str(picture)!r} has two captions, in {names}: remove one")
    return next(iter(found), None)


def words(file: Path, picture: Path, several: list[Path]) -> str:
    """The text of a caption file, which is added to `several` where it has several lines. Raises UserError when it is
    empty or no text."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise UserError(f"the caption file {str(file)!r} {what}") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError(f"the caption file {str(file)!r} is empty: say what {picture.name} shows, or remove the file")
    if len(lines) > 1:
        several.append(file)
    return " ".join(" ".join(lines).split())


def metadata(
    file: Path, pictures: Mapping[Path, Path], passed: set[Path], stated: Mapping[Path, Texts], skip: bool
) -> dict[Path, Texts]:
    """Captions by picture out of a metadata.jsonl; a wrong line is named by its number. pictures: by `location`.
    passed: locations of files that are left out, whose lines are too. stated: by other files before it."""
    found: dict[Path, Texts] = {}
    known = {*pictures, *passed}
    for number, line in json_lines(file):
        problem, place, text = row(line, file.parent, known)
        picture = pictures.get(place, place)
        if not problem and place in passed:
            continue
        if not problem and picture in found:
            problem = f"{picture.name!r} was described before"
        elif not problem and stated.get(picture, text) != text:
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


def row(line: str, folder: Path, known: set[Path]) -> tuple[str, Path, Texts]:
    """(what is wrong or "", location of the picture, its captions) of one line. known: locations. A backslash parts
    folders where there is no file of the whole name."""
    problem, values = json_texts(line, ("file_name", "text"), ("teacher_text",))
    if problem:
        return problem, folder, ("", None)
    name = values["file_name"]
    try:
        places = [location(folder / name), location(folder / name.replace("\\", "/"))]
    except (ValueError, OSError):  # a NUL character, a link to itself
        places = []
    place = next((place for place in places if place in known), None)
    if place is None:
        hint = ": write it relative to that folder" if Path(name).is_absolute() else ""
        return f"there is no picture {name!r} in {str(folder)!r}{hint}", folder, ("", None)
    return "", place, (" ".join(values["text"].split()), values.get("teacher_text"))
