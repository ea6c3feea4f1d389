"""Base models by name: an embedded one ("mini-sd3"), a diffusers folder, a safetensors file, a hub id."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.bases.cards import card, cards, check_name, embedded
from impasto.bases.hub import download, hub_configs, part_config
from impasto.devices import place
from impasto.errors import UserError
from impasto.families import check_class, family_class
from impasto.families.files import outlined, pipeline_class

if TYPE_CHECKING:
    from impasto.families.base import Family
    from impasto.noise.schedule import Schedule


def check_components(base: str, components: Path | None) -> None:
    """Raise UserError when it is given and no folder; warn where `base` is no single file, which holds all itself."""
    if components is None:
        return
    if not components.is_dir():
        raise UserError(f"--components {str(components)!r} is no folder: name a diffusers folder")
    if not Path(base).is_file():
        warnings.warn(
            "components are of a .safetensors checkpoint: this base has its own, which are used", stacklevel=1
        )


def locate(base: str, components: Path | None = None) -> Path:
    """The diffusers folder of `base`: embedded ones are assembled in the cache, single files converted there, hub ids
    downloaded (or found there). components: a diffusers folder for what a single file does not hold.

    Raises UserError when there is no such base, no network, or no access.
    """
    check_name(base)
    check_components(base, components)
    if Path(base).is_dir():
        return Path(base)
    if Path(base).is_file():
        from impasto.bases import single_file

        return single_file.convert(Path(base), components)
    if base in embedded():
        from impasto.bases import embedded as mini

        return mini.ensure(base)
    return download(base)


def schedule(base: str) -> "Schedule":
    """The noise schedule of `base` as far as it is known without loading or downloading it.

    A folder's or a single file's own; else by the card's `betas` (scaled-linear); a rectified flow where the card has
    none. Warns when nothing at all is known of the base.
    """
    from impasto.noise.schedule import RectifiedFlow, VariancePreserving

    known = card(base)
    if Path(base).exists() and (family := outline(base)):
        return family.schedule
    if not known:
        check_class(base, part_config(base, "model_index.json").get("_class_name"))
        warnings.warn(
            f"base {base!r} is not here, and the hub does not tell what it is: its family, its size and the levels at "
            "which its noise law ends are unknown until it is; shown is what a rectified flow would have",
            stacklevel=2,
        )
    return VariancePreserving.scaled_linear(*known["betas"]) if "betas" in known else RectifiedFlow()


def load(base: str, *, device: str = "auto", precision: str = "auto", components: Path | None = None) -> "Family":
    """The family of `base`, its weights not read yet. device, precision: see `place`; components: see `locate`."""
    device, precision = place(device, precision)
    return at(locate(base, components), base, device, precision)


def at(folder: Path, base: str, device: str, precision: str) -> "Family":
    """The family of a diffusers folder, which is that of `base`."""
    name = pipeline_class(folder)
    known = cards().get(name, {}) | card(base)
    return family_class(base, name).load(folder, known, device=device, precision=precision)


def outline(base: str, components: Path | None = None) -> "Family | None":
    """The family of `base` (cpu, fp32) as far as its configurations tell: for `--dry-run`, no weights are read.

    Those of a hub id come from the hub's cache, else they are fetched (a few kB each); None where one cannot be had.
    Those of a single file, whose header is read, come with the package; what it does not hold goes by `components`.
    Raises UserError when there is no such base, and when it is none that impasto speaks.
    """
    check_name(base)
    check_components(base, components)
    if Path(base).is_file():
        from impasto.bases import single_file

        folder = single_file.outline(Path(base), components)
    elif Path(base).is_dir() or base in embedded():
        folder = locate(base)
    elif configs := hub_configs(base):
        folder = outlined(configs)
    else:
        return None
    return at(folder, base, "cpu", "fp32")
