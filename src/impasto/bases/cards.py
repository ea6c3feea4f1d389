"""Base model cards: cards.toml and the `impasto.json` of a folder."""

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from impasto.bases.hub import HUB_ID, part_config
from impasto.errors import UserError, nearest
from impasto.families.files import pipeline_class
from impasto.files import read_object

CARD_TYPES = {  # types of the keys of an `impasto.json`; see cards.toml
    "size": int,
    "bucket_step": int,
    "embedded": bool,
    "betas": tuple[float, ...],
    "prior_prompts": tuple[str, ...],
    "generate.steps": int,
    "generate.guidance": float,
    "generate.temperature": float,
    "generate.token_temperature": float,
    "aligned_shift": float,
    "generate.batch": int,
    "generate.sampler": str,
    **dict.fromkeys(("name", "pipeline", "license", "license_name", "license_link"), str),
    **dict.fromkeys(("recipe", "modelspec", "predicts"), str),
}

SHORT_NAMES = {
    **dict.fromkeys(("sd15", "sd1.5", "sd-1.5", "v1-5"), "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    **dict.fromkeys(("sdxl", "sd-xl", "sdxl-base", "xl", "xl-base-1.0"), "stabilityai/stable-diffusion-xl-base-1.0"),
    **dict.fromkeys(("sd3", "sd3-medium", "3-medium"), "stabilityai/stable-diffusion-3-medium-diffusers"),
    **dict.fromkeys(("sd35", "sd3.5", "sd3.5-large", "3.5-large"), "stabilityai/stable-diffusion-3.5-large"),
    **dict.fromkeys(("sd3.5-medium", "3.5-medium"), "stabilityai/stable-diffusion-3.5-medium"),
    **dict.fromkeys(("flux", "flux-dev", "flux1", "flux.1", "flux.1-dev", "flux1-dev"), "black-forest-labs/FLUX.1-dev"),
    **dict.fromkeys(("flux-schnell", "flux.1-schnell", "flux1-schnell"), "black-forest-labs/FLUX.1-schnell"),
}
"""What people call bases that have another hub id."""


@cache
def cards() -> dict[str, dict[str, Any]]:
    """`cards.toml`: the card of each base and of each pipeline class."""
    return tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))


def embedded() -> list[str]:
    """Names of the embedded base models."""
    return [name for name, card in cards().items() if card.get("embedded")]


def check_name(base: str) -> None:
    """Raise UserError unless `base` is a folder, a safetensors file, an embedded name, or has the form of a hub id."""
    from impasto.bases.single_file import is_checkpoint

    if Path(base).is_dir() or base in embedded() or is_checkpoint(base):
        return
    if full := SHORT_NAMES.get(base.lower().removeprefix("stable-diffusion-")):
        raise UserError(f"unknown base {base!r}: its hub id is {full}")
    if not HUB_ID.fullmatch(base):
        raise UserError(
            f"unknown base {base!r}: {nearest(base, embedded())}, or a diffusers folder, a .safetensors file, "
            "or a hub id as owner/name"
        )


def card(base: str) -> dict[str, Any]:
    """The card of `base`, without loading it: its class's card, updated by the base's own and by the folder's.

    A folder may have an `impasto.json` with a "name" (an entry of cards.toml) and any key of a card; its tables
    "generate", "train" and "style" may be partial. For a hub id without an entry, the pipeline class is looked up (see
    `part_config`); without network the card is {}. FLUX without a guidance input uses schnell's card except for its
    licence. Raises UserError when there is no such base.
    """
    check_name(base)
    folder = Path(base)
    known = cards()
    if folder.is_file():
        from impasto.bases.single_file import card_name

        return card(card_name(folder)) | {"license": "other"}
    if not folder.is_dir():
        own, name = {}, base
        index = known.get(base) or part_config(base, "model_index.json")
        pipeline = index.get("pipeline") or index.get("_class_name", "")
    else:
        own = folder_card(folder / "impasto.json")
        name, pipeline = str(own.get("name", "")), pipeline_class(folder)
    named = known.get(name, {})
    if pipeline == "FluxPipeline" and not named:
        transformer = part_config(base, "transformer/config.json")
        if transformer and not transformer.get("guidance_embeds", False):
            named = known["black-forest-labs/FLUX.1-schnell"] | {"license": "other"}
    found = known.get(pipeline, {}) | known.get(named.get("like", ""), {}) | named
    merged = [table for table in ("generate", "train", "style") if table in own]
    return found | own | {table: found.get(table, {}) | own[table] for table in merged}


def folder_card(file: Path) -> dict[str, Any]:
    """The content of an `impasto.json`, {} if there is none. Raises UserError when it cannot be read or a value does
    not have its type in CARD_TYPES."""
    from impasto.bases.style_defaults import of_card
    from impasto.coerce import convert

    try:
        own = read_object(file) if file.is_file() else {}
    except (OSError, ValueError):
        raise UserError(f"{file} cannot be read: repair or remove it") from None
    recipes = own.get("recipes", {})
    tables = {name: own[name] for name in ("generate", "train", "style", "recipes", "text_lengths") if name in own}
    tables |= {f"recipes.{name}": keys for name, keys in recipes.items()} if isinstance(recipes, dict) else {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name} must be a table, not {table!r}")
    flat = own | {f"generate.{key}": value for key, value in own.get("generate", {}).items()}
    for key, kind in CARD_TYPES.items():
        if key in flat:
            convert(flat[key], kind, f"{file}: {key}")
    if "style" in own:
        of_card(own, where=f"{file}: style")
    if "text_lengths" in own:
        check_lengths(own["text_lengths"], file)
    return own


def check_lengths(lengths: Mapping[str, Any], file: Path) -> None:
    """Raise UserError unless `text_lengths` of an `impasto.json` maps numbers of tokens to shares above 0."""
    from impasto.coerce import convert

    shares = [convert(share, float, f"{file}: text_lengths.{length}") for length, share in lengths.items()]
    whole = all(length.isdecimal() and int(length) > 0 for length in lengths)
    if not shares or not whole or not all(0 < share < math.inf for share in shares):
        raise UserError(f"{file}: text_lengths must be numbers of tokens with shares above 0, not {dict(lengths)!r}")
