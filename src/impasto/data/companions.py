"""Files in an image folder that are not images of the style, by their names: thumbnails, regularisation images, mask
files, formats that Pillow does not read, and texts that look like captions and are not read.

Each kind is left out with one warning that counts and names its files.
"""

import re
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".avifs", ".jp2", ".j2k", ".jpx", ".mpo", ".tga", ".qoi", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Of images that Pillow reads."""
UNREAD_IMAGES = {
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd", ".xcf", ".kra", ".clip", ".exr", ".hdr", ".dng"),
    *(".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
}
CAPTIONS = {".txt", ".caption"}
UNREAD_TEXTS = re.compile(
    r"\.(json|csv|tsv|ya?ml|xml|xmp|md|text|cap|tags?|captions|prompt|wd14|(txt|caption)\d)", re.I
)
"""Endings of texts that other tools write beside an image."""
TABLES = re.compile(
    r"(?!metadata\.jsonl)(metadata|meta_\w+|captions?|prompts?|tags)\.(csv|tsv|json|jsonl|parquet)", re.I
)
"""Names of files with the captions of a whole folder."""
THUMBNAILS = re.compile(r"@eaDir|#recycle|@recycle|\$RECYCLE\.BIN|__MACOSX|lost\+found|thumb(nail)?s?|_controls", re.I)
"""Folders of file servers (Synology, QNAP, Windows), archives and trainers."""
REGULARISATION = re.compile(r"regs?|reg_images|regulari[sz]ation(_images)?|class_images", re.I)
PROJECT = {"log", "logs", "model", "models", "sample", "samples"}
"""Folders beside `img` in a project of kohya's GUI."""
MASK = re.compile(r"(.+)(\.mask|-masklabel)", re.I)
"""Stems of masks: ours, OneTrainer's."""
LIKELY_MASK = re.compile(r"(.+)[-_]mask", re.I)
"""Stems of masks where there is an image without this ending."""
NOT_IMAGE = re.compile(r"(.+)(-condlabel|[-_.]thumb(nail)?|\.preview)", re.I)
"""Stems of files made from an image: OneTrainer's conditioning images, previews."""


def composed(path: Path) -> Path:
    """The path in Unicode's composed form (NFC): macOS writes names decomposed."""
    return Path(unicodedata.normalize("NFC", str(path)))


def stem(path: Path) -> Path:
    """The composed path without its last ending, by which captions and masks find their image."""
    return composed(path.with_suffix(""))


def is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def split_companions(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path]]:
    """(files of the style, files that are left out). Warns of thumbnails and files made by tools, of regularisation
    images, and of image formats that are not read."""
    projects = {place.parent for file in files for place in folders_of(file, folder) if place.name.lower() == "img"}
    stems = {stem(file) for file in files if is_image(file)}
    kept: list[Path] = []
    made: list[Path] = []
    regularisation: list[Path] = []
    unread: list[Path] = []
    for file in files:
        places, copy = folders_of(file, folder), NOT_IMAGE.fullmatch(file.stem)
        by_tool = copy is not None and composed(file.with_name(copy[1])) in stems
        for place in places:
            by_tool = by_tool or (place.name.lower() in PROJECT and place.parent in projects)
        if any(REGULARISATION.fullmatch(place.name) for place in places):
            regularisation.append(file)
        elif by_tool or any(THUMBNAILS.fullmatch(place.name) for place in places):
            made.append(file)
        else:
            (unread if file.suffix.lower() in UNREAD_IMAGES else kept).append(file)
    warn_left_out(list(filter(is_image, made)), folder, "thumbnails and images that tools made")
    images = list(filter(is_image, regularisation))
    if images:
        place = next(place for place in folders_of(images[0], folder)[::-1] if REGULARISATION.fullmatch(place.name))
        use = f": --prior.image {str(place)!r} uses them for prior preservation"
        warn_left_out(images, folder, "regularisation images, which do not show the style", use)
    warn_left_out(unread, folder, "in a format that is not read", ": convert them to PNG or JPEG")
    return kept, [*made, *regularisation, *unread]


def folders_of(file: Path, folder: Path) -> Sequence[Path]:
    """The folders below `folder` in which a file lies, the innermost first."""
    return file.parents[: len(file.relative_to(folder).parts) - 1]


def warn_left_out(images: Sequence[Path], folder: Path, what: str, instead: str = "") -> None:
    """One warning that counts and names these images, if there are any."""
    if images:
        count = "1 image file is" if len(images) == 1 else f"{len(images)} image files are"
        warnings.warn(f"{count} left out, {what} ({named(images, folder)}){instead}", stacklevel=4)


def mask_owner(file: Path, folder: Path, stems: Collection[Path]) -> Path | None:
    """The `stem` of the image that a mask file belongs to; None where it is not a mask. stems: of all image files."""
    *parents, _ = file.relative_to(folder).parts
    match, likely = MASK.fullmatch(file.stem), LIKELY_MASK.fullmatch(file.stem)
    if likely and composed(file.with_name(likely[1])) in stems:
        match = match or likely
    places = [i for i, name in enumerate(parents) if name.lower() == "masks"]
    if places:
        parents.pop(places[-1])
    elif not match:
        return None
    return composed(folder.joinpath(*parents, match[1] if match else file.stem))


def warn_unread_texts(files: Sequence[Path], folder: Path, silent: Collection[Path]) -> None:
    """Warn of texts that look like captions and are not read. silent: images without a caption of their own."""
    if not silent:
        return
    stems = {stem(image) for image in silent} | {composed(image) for image in silent}  # of a.json and a.png.json
    texts = [
        file
        for file in files
        if TABLES.fullmatch(file.name) or (UNREAD_TEXTS.fullmatch(file.suffix) and stem(file) in stems)
    ]
    if texts:
        looks, are = ("1 file looks", "is") if len(texts) == 1 else (f"{len(texts)} files look", "are")
        warnings.warn(
            f"{looks} like captions and {are} not read ({named(texts, folder)}): captions are read from a.txt or "
            "a.caption beside a.png, and from metadata.jsonl",
            stacklevel=3,
        )


def named(paths: Sequence[Path], folder: Path | None = None, most: int = 3) -> str:
    """The first few names, or paths in `folder`, for messages."""
    names = [path.name if folder is None else path.relative_to(folder).as_posix() for path in paths[:most]]
    return ", ".join(names) + (", .." if len(paths) > most else "")
