"""The parts of a style: what `style.json` lists, and which file holds them.

    {"parts": [{"kind": "styleinject", "file": "styleinject.safetensors"}, {"kind": "lora", "file": ...}], ...}

A folder or a file with a plain LoRA alone needs no `style.json`: it is one part of the kind "lora". The kinds are those
of `adapters.base.Adapter`, "token" (`adapters.token`) and "noise" (`inversion.noise_file`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impasto.adapters import ADAPTERS
from impasto.adapters.base import Adapter
from impasto.errors import UserError, nearest
from impasto.files import atomic, read_object

STYLE_JSON = "style.json"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file of a plain LoRA, as diffusers names it."""
TOKEN, NOISE = "token", "noise"
"""Kinds of parts beside the adapters."""


@dataclass(frozen=True)
class Part:
    """kind: of its adapter, or TOKEN or NOISE. file: a name in the style's folder."""

    kind: str
    file: str


def read_style_json(folder: Path) -> dict[str, Any]:
    """The `style.json` of a style folder, {} where there is none. Raises UserError when it is damaged."""
    file = folder / STYLE_JSON
    if not folder.is_dir() or not file.is_file():
        return {}
    try:
        return read_object(file)
    except (OSError, ValueError):
        raise UserError(f"{file} cannot be read: repair it, or remove it") from None


def read_parts(folder: Path) -> list[Part]:
    """The parts of a style folder, the denoiser's adapter first. Raises UserError when `style.json` is damaged."""
    listed = read_style_json(folder).get("parts")
    if listed is None:
        return [Part("lora", WEIGHTS)]
    kinds = [*adapter_kinds(), TOKEN, NOISE]
    try:
        parts = [Part(str(part["kind"]), Path(part["file"]).name) for part in listed]
    except (TypeError, KeyError):
        raise UserError(f"{folder / STYLE_JSON}: parts must be a list of tables with kind and file") from None
    for part in parts:
        if part.kind not in kinds:
            raise UserError(f"{folder / STYLE_JSON}: unknown kind {part.kind!r}: {nearest(part.kind, kinds)}")
    if not parts:
        raise UserError(f"{folder / STYLE_JSON}: parts is empty: the style has no weights")
    return parts


def part_files(folder: Path, kind: str) -> list[Path]:
    """The files of a style folder's parts of one kind; [] for a style that is one file."""
    return [folder / part.file for part in read_parts(folder) if part.kind == kind] if folder.is_dir() else []


def adapter_kinds() -> dict[str, Adapter]:
    """{kind: adapter} of the rows of ADAPTERS."""
    return {adapter.kind: adapter for adapter in (entry.builder for entry in ADAPTERS.values())}


def write_parts(folder: Path, parts: Sequence[Part], sampling: Mapping[str, Any]) -> None:
    """List the parts in `style.json`, with the `sampling` of their adapter; keys that are there stay. Nothing is
    written for a plain LoRA."""
    content = read_style_json(folder)
    if list(parts) == [Part("lora", WEIGHTS)] and "parts" not in content:
        return
    content["parts"] = [asdict(part) for part in parts]
    if sampling:
        content["sampling"] = {**sampling, **content.get("sampling", {})}
    with atomic(folder / STYLE_JSON) as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_defaults(folder: Path, guidance: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """State in `style.json` how the style is sampled where no flag says otherwise; its other keys stay."""
    add_to_style_json(folder, {"guidance": dict(guidance), "sampling": dict(sampling)})


def add_to_style_json(folder: Path, keys: Mapping[str, Any]) -> None:
    """Set keys of `style.json`; its other keys stay."""
    content = read_style_json(folder) | dict(keys)
    with atomic(folder / STYLE_JSON) as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def has_weights(folder: Path) -> bool:
    """Whether all files of a style's parts are there."""
    return all((folder / part.file).is_file() for part in read_parts(folder))
