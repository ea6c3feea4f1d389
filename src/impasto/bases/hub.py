"""Base models on the Hugging Face Hub: configurations and downloads."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.families import family_class
from impasto.families.files import SCHEDULER, VARIANT
from impasto.files import read_object

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def part_config(base: str, name: str) -> dict[str, Any]:
    """A JSON file of a diffusers folder or a hub id, such as "unet/config.json"; {} if it is not available.

    For a hub id it is read from the hub's cache, else downloaded (a few kB).
    """
    from huggingface_hub import try_to_load_from_cache

    file = None
    try:
        if Path(base).is_dir():
            file = Path(base, name)
        elif HUB_ID.fullmatch(base):
            found = try_to_load_from_cache(base, name)
            file = Path(found) if isinstance(found, str) else hub_file(base, name)
        return read_object(file) if file else {}
    except (OSError, ValueError):  # a damaged file, or not a valid id, such as "../x"
        return {}


@cache
def hub_file(base: str, name: str) -> Path | None:
    """One file of a hub id, downloaded; None when it is not available (also cached: no second request)."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, name))
    except Exception:  # hub, http and file system errors have no common class; `download` reports them
        return None


def download(base: str) -> Path:
    """The folder of a hub id in the hub's cache, downloaded. Raises UserError with the next step when that fails."""
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    from impasto.families.base import quiet

    page = f"https://huggingface.co/{base}"
    try:
        with quiet():
            try:
                return Path(DiffusionPipeline.download(base, use_safetensors=True))
            except OSError as error:
                if not lacks_safetensors(error):
                    raise
            return Path(DiffusionPipeline.download(base, use_safetensors=True, variant=VARIANT))
    except Exception as error:  # hub, http and file system errors have no common class
        causes = error_chain(error)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            why = f"is gated: accept its licence at {page}, create a token, and log in with `hf auth login`"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            why = f"is not on the hub, or private: check {page}, and log in with `hf auth login` if it is yours"
        elif lacks_safetensors(error):
            why = f"has no safetensors weights, and pickles are not read: see {page} for another upload of it"
        else:
            cause = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
            why = (
                f"is not a local folder and cannot be fetched from the hub ({cause[:150]}); "
                "check the name and the network, and log in with `hf auth login` for gated models"
            )
        raise UserError(f"base {base!r} {why}") from None


def lacks_safetensors(error: Exception) -> bool:
    """Whether diffusers reports a component without safetensors (of the requested variant)."""
    return "Could not find the necessary `safetensors` weights" in str(error)


def error_chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the first cause last."""
    inner = error.__cause__ or error.__context__
    return [error, *(error_chain(inner) if inner else [])]


def read_hub_configs(base: str) -> dict[str, dict[str, Any]] | None:
    """The configurations of a hub id, {file name: content}; None if one is not available."""
    index = part_config(base, "model_index.json")
    if "_class_name" not in index:
        return None
    cls: Any = family_class(base, index["_class_name"])
    parts = (cls.part, cls.autoencoder_part, *(name for name in cls.clips if index.get(name, [None])[0]))
    found = {"model_index.json": index}
    for name in (SCHEDULER, *(f"{part}/config.json" for part in parts)):
        found[name] = part_config(base, name)
        if not found[name]:
            return None
    return found
