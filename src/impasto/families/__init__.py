"""Base models by name: an embedded one ("mini-sd3"), a diffusers folder, or a hub id ("owner/name").

The table FAMILIES maps the pipeline class that a folder names in its `model_index.json` to the file that speaks to it.
"""

import hashlib
import json
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.errors import UserError, nearest

if TYPE_CHECKING:
    from impasto.families.base import Family
    from impasto.noise.schedule import Schedule

FAMILIES = {
    "FluxPipeline": ("impasto.families.flux", "Flux"),
    "StableDiffusion3Pipeline": ("impasto.families.sd3", "SD3"),
    "StableDiffusionXLPipeline": ("impasto.families.sdxl", "SDXL"),
    "StableDiffusionPipeline": ("impasto.families.sd15", "SD15"),
}


@cache
def cards() -> dict[str, dict[str, Any]]:
    """`cards.toml`: per base, or per pipeline class, how it is spoken to and trained."""
    return tomllib.loads(Path(__file__).with_name("cards.toml").read_text())


def embedded() -> list[str]:
    """Names of the base models that come with the package."""
    return [name for name, card in cards().items() if card.get("embedded")]


def pipeline_class(folder: Path) -> str:
    """The pipeline class that a diffusers folder names."""
    try:
        return json.loads((folder / "model_index.json").read_text())["_class_name"]
    except FileNotFoundError:
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json") from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise UserError(f"{folder}/model_index.json cannot be read") from None


def check_name(base: str) -> None:
    """Raise UserError unless `base` is a folder, embedded, or at least written like a hub id."""
    if not (Path(base).is_dir() or base in embedded() or re.fullmatch(r"[\w.-]+/[\w.-]+", base)):
        raise UserError(
            f"unknown base {base!r}: {nearest(base, embedded())}, or a diffusers folder, or a hub id as owner/name"
        )


def card(base: str) -> dict[str, Any]:
    """What is known about `base` without loading or downloading it: the class's card, the base's, the folder's own.

    A folder may carry an `impasto.json` with a "name" (an entry of cards.toml) and any key of a card. Raises UserError
    when `base` is none of a folder, an embedded name and a hub id.
    """
    check_name(base)
    folder = Path(base)
    known = cards()
    if not folder.is_dir():
        own = known.get(base, {})
        return known.get(own.get("pipeline", ""), {}) | own
    file = folder / "impasto.json"
    own = json.loads(file.read_text()) if file.is_file() else {}
    return known.get(pipeline_class(folder), {}) | known.get(own.get("name", ""), {}) | own


def locate(base: str) -> Path:
    """The diffusers folder of `base`: embedded ones are assembled in the cache, hub ids downloaded (or found there).

    Raises UserError when there is no such base, no network, or no access.
    """
    check_name(base)
    if Path(base).is_dir():
        return Path(base)
    if base in embedded():
        from impasto.families import mini

        return mini.ensure(base)
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(base, use_safetensors=True))
    except Exception as error:  # hub, http and file system errors have no common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"base {base!r} is not a folder here and cannot be fetched from the hub ({reason}); "
            "check the name, the network, and `hf auth login` for gated models"
        ) from None


def schedule(base: str) -> "Schedule":
    """The noise schedule of `base` as far as it is known without loading or downloading it.

    A folder's own; else by the card's `betas` (scaled-linear); a rectified flow where the card has none.
    """
    from impasto.noise.schedule import RectifiedFlow, VariancePreserving

    known = card(base)
    if Path(base).is_dir():
        return load(base, device="cpu", precision="fp32").schedule
    return VariancePreserving.scaled_linear(*known["betas"]) if "betas" in known else RectifiedFlow()


def folder_hash(folder: Path) -> str:
    """sha256 over weights, configs and tokenisers of a diffusers folder: what makes its pictures, and nothing else.

    A weight file that is a link into the hub's cache is known there by its sha256 already; the versions of libraries
    that configs state do not count.
    """
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        inside = len(file.relative_to(folder).parts) > 1 or file.name == "model_index.json"
        if not inside or not file.is_file() or file.suffix not in {".safetensors", ".json", ".txt", ".model"}:
            continue
        total.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return total.hexdigest()


def file_hash(file: Path) -> str:
    """sha256 of one file of a base."""
    blob = file.resolve().name
    if file.suffix == ".safetensors" and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    if file.name.endswith(("config.json", "model_index.json")):
        content = json.loads(file.read_text())
        for key in ("_diffusers_version", "transformers_version"):
            content.pop(key, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def place(device: str, precision: str) -> tuple[str, str]:
    """("cpu" | "cuda" | "mps", "fp32" | "bf16") for what may be "auto". Raises UserError on anything else."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {device!r}: {nearest(device, ['auto', 'cpu', 'cuda', 'mps'])}")
    if (device.startswith("cuda") and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        raise UserError(f"there is no device {device!r} here: --device cpu, or auto")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"unknown precision {precision!r}: {nearest(precision, ['auto', 'fp32', 'bf16'])}")
    return device, precision


def load(base: str, *, device: str = "auto", precision: str = "auto") -> "Family":
    """The family of `base`, its weights not read yet. device, precision: see `place`."""
    folder = locate(base)
    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise UserError(f"{base!r} is a {name}, which impasto does not speak yet; known: {', '.join(FAMILIES)}")
    device, precision = place(device, precision)
    module, cls = FAMILIES[name]
    known = cards().get(name, {}) | card(base)
    return getattr(import_module(module), cls).load(folder, known, device=device, precision=precision)
