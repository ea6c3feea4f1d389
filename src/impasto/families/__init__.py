"""Supported architectures: FAMILIES maps the pipeline class of a folder's `model_index.json` to a `Family` class."""

from importlib import import_module
from typing import TYPE_CHECKING

from impasto.errors import UserError

if TYPE_CHECKING:
    from impasto.families.base import Family

FAMILIES = {
    "AmusedPipeline": ("impasto.families.muse", "Muse"),
    "FluxPipeline": ("impasto.families.flux", "Flux"),
    "StableDiffusion3Pipeline": ("impasto.families.sd3", "SD3"),
    "StableDiffusionXLPipeline": ("impasto.families.sdxl", "SDXL"),
    "StableDiffusionPipeline": ("impasto.families.sd15", "SD15"),
}


def check_class(base: str, name: str | None) -> None:
    """Raise UserError when `name`, the pipeline class of `base`, is given and not supported."""
    if name and name not in FAMILIES:
        raise UserError(f"{base!r} is a {name}, which impasto does not support; supported: {', '.join(FAMILIES)}")


def family_class(base: str, name: str) -> "type[Family]":
    """The `Family` class of the pipeline class `name`. Raises UserError when it is not supported."""
    check_class(base, name)
    module, cls = FAMILIES[name]
    return getattr(import_module(module), cls)
