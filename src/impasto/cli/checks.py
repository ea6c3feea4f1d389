"""Checks of names and values that need no model: they run before torch and diffusers are imported, which takes
seconds. The functions that commands call check the same again, and more."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from impasto.bases.cards import check_name
from impasto.errors import UserError
from impasto.styles.hub_download import hub_name

STEP_OR_STRENGTH = re.compile(r"(@\d+)?(:[^:/\\]*)?$")


def check_bases(*bases: str | None) -> None:
    """Raise UserError for the first name that is no base; None is skipped."""
    for base in bases:
        if base is not None:
            check_name(base)


def check_images(images: Sequence[Path]) -> None:
    """Raise UserError for the first image or folder that does not exist."""
    for image in images:
        if not image.exists():
            raise UserError(f"image {str(image)!r} does not exist")


def check_styles(styles: Iterable[str | Path], hub: bool = False) -> None:
    """Raise UserError for the first style, "runs/x@100:0.8", that is neither a file nor a folder. hub: it may be the
    name of one on the Hub as well."""
    for style in map(str, styles):
        if hub and hub_name(style):
            continue
        if not Path(style).exists() and not Path(path := STEP_OR_STRENGTH.sub("", style)).exists():
            raise UserError(f"style {path!r} cannot be loaded: no such file or folder")


def check_folder(folder: Path, give: str) -> None:
    """Raise UserError when a folder does not exist. give: what to give instead."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{str(folder)!r} {what}: give {give}")


def check_encoders(encoders: Sequence[str]) -> None:
    """Raise UserError for the first of "NAME" or "NAME=SOURCE" that is no encoder, or lacks a source it needs."""
    if encoders:
        from impasto.evaluation.encoders import split_name

        for text in encoders:
            split_name(text)
