"""Load a base model by name: embedded ("mini-sd3"), a diffusers folder, a safetensors file, or a hub id."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.bases.cards import card, cards, check_name, embedded
from impasto.bases.hub import download, part_config, read_hub_configs
from impasto.devices import resolve_device
from impasto.errors import UserError
from impasto.families import check_class, family_class
from impasto.families.files import pipeline_class, write_config_folder

if TYPE_CHECKING:
    from impasto.families.base import Family
    from impasto.noise.schedule import Schedule


def check_components(base: str, components: Path | None) -> None:
    """Raise UserError when `components` is given and not a folder; warn when `base` is not a single file."""
    if components is None:
        return
    if not components.is_dir():
        raise UserError(f"--components {str(components)!r} is not a folder: name a diffusers folder")
    if not Path(base).is_file():
        warnings.warn(
            "--components is for a .safetensors checkpoint: this base has its own, which are used", stacklevel=1
        )


def locate(base: str, components: Path | None = None) -> Path:
    """The diffusers folder of `base`: an embedded base is assembled in the cache, a single file converted there, a hub
    id downloaded. components: a diffusers folder for the components that a single file lacks.

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
    """The noise schedule of `base`, without loading or downloading it.

    That of a folder or a single file; otherwise from the card's `betas` (scaled-linear), or a rectified flow if the
    card has none. Warns when nothing is known about the base.
    """
    from impasto.noise.schedule import RectifiedFlow, VariancePreserving

    known = card(base)
    if Path(base).exists() and (family := load_config_only(base)):
        return family.schedule
    if not known:
        check_class(base, part_config(base, "model_index.json").get("_class_name"))
        warnings.warn(
            f"base {base!r} is not on disk and the hub is not available: its family, its size and its log-SNR range "
            "are unknown until it is downloaded; a rectified flow is assumed",
            stacklevel=2,
        )
    return VariancePreserving.scaled_linear(*known["betas"]) if "betas" in known else RectifiedFlow()


def load(base: str, *, device: str = "auto", precision: str = "auto", components: Path | None = None) -> "Family":
    """The family of `base`; weights are read on use. device, precision: see `resolve_device`; components: see
    `locate`."""
    device, precision = resolve_device(device, precision)
    return from_folder(locate(base, components), base, device, precision)


def from_folder(folder: Path, base: str, device: str, precision: str) -> "Family":
    """The family of `folder`, the diffusers folder of `base`. Raises UserError when the denoiser has an image input or
    weights are pickles."""
    name = pipeline_class(folder)
    known = cards().get(name, {}) | card(base)
    family = family_class(base, name).load(folder, known, device=device, precision=precision)
    check_channels(base, name, family)
    check_pickles(base, family)
    return family


def check_channels(base: str, name: str, family: Any) -> None:
    """Raise UserError when the denoiser takes more channels than it predicts (inpainting, FLUX Fill, Depth, Canny)."""
    from impasto.bases.single_file import IMAGE_INPUT, unsupported

    if name not in IMAGE_INPUT:
        return
    config = family.config(family.part)
    channels = config.get("in_channels")
    if channels != (config.get("out_channels") or channels):
        raise unsupported(base, IMAGE_INPUT[name])


def check_pickles(base: str, family: Any) -> None:
    """Raise UserError when a component has weights in pickles (.bin) alone."""
    for part in (family.part, family.autoencoder_part, *family.encoder_parts):
        folder = family.folder / part
        pickles = [] if part in family.absent else sorted(folder.glob("*.bin"))
        if pickles and not any(folder.glob("*.safetensors")):
            convert = (
                f"from diffusers import {family.pipeline_class} as P; "
                f"P.from_pretrained({base!r}).save_pretrained({base + '-safetensors'!r})"
            )
            raise UserError(
                f"base {base!r} has pickled weights ({part}/{pickles[0].name}), which can run code and are not read; "
                f'if you trust it, convert it once: python -c "{convert}"'
            )


def load_config_only(base: str, components: Path | None = None) -> "Family | None":
    """The family of `base` (cpu, fp32) from its configurations alone, without weights: for `--dry-run`.

    Configurations of a hub id are read from the hub's cache or downloaded (a few kB each); None if one is missing.
    For a single file they come with the package, chosen by its header, and from `components` for what it lacks.
    Raises UserError when there is no such base or its pipeline class is not supported.
    """
    check_name(base)
    check_components(base, components)
    if Path(base).is_file():
        from impasto.bases import single_file

        folder = single_file.config_folder(Path(base), components)
    elif Path(base).is_dir() or base in embedded():
        folder = locate(base)
    elif configs := read_hub_configs(base):
        folder = write_config_folder(configs)
    else:
        return None
    return from_folder(folder, base, "cpu", "fp32")


def load_config(base: str, components: Path | None, instead: str) -> "Family":
    """`load_config_only`. Raises UserError where the configurations are not available; instead: what to do then."""
    family = load_config_only(base, components)
    if family is None:
        raise UserError(f"the configurations of {base!r} are not available without network: {instead}")
    return family
