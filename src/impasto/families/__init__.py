"""Base models by name: an embedded one ("mini-sd3"), a diffusers folder, a safetensors file, a hub id ("owner/name").

The table FAMILIES maps the pipeline class that a folder names in its `model_index.json` to the file that speaks to it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from impasto.errors import UserError

if TYPE_CHECKING:
    from impasto.families.base import Family

FAMILIES = {
    "FluxPipeline": ("impasto.families.flux", "Flux"),
    "StableDiffusion3Pipeline": ("impasto.families.sd3", "SD3"),
    "StableDiffusionXLPipeline": ("impasto.families.sdxl", "SDXL"),
    "StableDiffusionPipeline": ("impasto.families.sd15", "SD15"),
}


def check_class(base: str, name: str | None) -> None:
    """Raise UserError when the pipeline class of `base` is known and none that impasto speaks."""
    if name and name not in FAMILIES:
        raise UserError(f"{base!r} is a {name}, which impasto does not speak yet; known: {', '.join(FAMILIES)}")


def family_class(base: str, name: str) -> "type[Family]":
    """The class that speaks to the pipeline class `name`. Raises UserError when there is none."""
    check_class(base, name)
    module, cls = FAMILIES[name]
    return getattr(import_module(module), cls)
