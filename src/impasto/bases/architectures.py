"""Architectures by name, in their published sizes: families from the configurations in the package, without weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from impasto.bases.loader import from_folder
from impasto.bases.single_file import CARD_NAMES, CONFIGS
from impasto.errors import UserError, nearest

if TYPE_CHECKING:
    from impasto.families.base import Family

SHORT = {"sd3": "sd3-medium", "sd35": "sd35-large", "flux": "flux-dev"}
ARCHITECTURES: dict[str, Path] = {name: CONFIGS / SHORT.get(name, name) for name in (*CARD_NAMES, *SHORT)}


def family_of(name: str) -> "Family":
    """The family of an architecture (cpu, fp32), for what needs its configurations alone. Raises UserError for an
    unknown name."""
    if name not in ARCHITECTURES:
        raise UserError(f"unknown family {name!r}: {nearest(name, list(ARCHITECTURES))}")
    return from_folder(ARCHITECTURES[name], str(ARCHITECTURES[name]), "cpu", "fp32")
