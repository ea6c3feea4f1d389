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
    """A configuration of a diffusers folder or a hub id, such as "unet/config.json"; {} where it cannot be had.

    A hub id's is looked up in the hub's cache, else fetched (a few kB).
    """
    from huggingface_hub import try_to_load_from_cache

    file = None
    try:
        if Path(base).is_dir():
            file = Path(base, name)
        elif HUB_ID.fullmatch(base):
            found = try_to_load_from_cache(base, name)
            file = Path(found) if isinstance(found, str) else fetched(base, name)
        return read_object(file) if file else {}
    except (OSError, ValueError):  # a damaged one, or what the hub does not take for an id, such as "../x"
        return {}


@cache
def fetched(base: str, name: str) -> Path | None:
    """One file of a hub id; None when it cannot be had, for which nobody is asked twice."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, name))
    except Exception:  # hub, http and file system errors have no common class; who needs the base is told by `download`
        return None


def download(base: str) -> Path:
    """The folder of a hub id in the hub's cache. Raises UserError when it cannot be had, saying what to do."""
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
        causes = chain(error)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            why = f"is gated: accept its licence at {page}, make a token, and give it to `hf auth login`"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            why = f"is not on the hub, or private: check {page}, and `hf auth login` where it is yours"
        elif lacks_safetensors(error):
            why = f"has weights that are no safetensors, and pickles are not read: see {page} for another upload of it"
        else:
            said = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
            why = (
                f"is not a folder here and cannot be fetched from the hub ({said[:150]}); "
                "check the name and the network, and `hf auth login` for gated models"
            )
        raise UserError(f"base {base!r} {why}") from None


def lacks_safetensors(error: Exception) -> bool:
    """Whether diffusers says that a component has no safetensors (of the variant that was asked for)."""
    return "Could not find the necessary `safetensors` weights" in str(error)


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the first cause last."""
    inner = error.__cause__ or error.__context__
    return [error, *(chain(inner) if inner else [])]


def hub_configs(base: str) -> dict[str, dict[str, Any]] | None:
    """What the planner wants to know of a hub id, by file; None where one of them cannot be had."""
    index = part_config(base, "model_index.json")
    if "_class_name" not in index:
        return None
    cls: Any = family_class(base, index["_class_name"])
    parts = (cls.part, "vae", *(name for name in cls.clips if index.get(name, [None])[0]))
    found = {"model_index.json": index}
    for name in (SCHEDULER, *(f"{part}/config.json" for part in parts)):
        found[name] = part_config(base, name)
        if not found[name]:
            return None
    return found
