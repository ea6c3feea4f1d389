"""Cells: one arm, one reference, one seed. The key covers all that the scores depend on; the file holds the scores.

    key = sha256 of {version, base's weights, arm's settings, sampling, reference, caption, prompts, seed, instruments}

A campaign's cells are the lines of one compressed file, `cells.jsonl.gz`, to be committed; images and adapters stay in
the cache. Library versions are recorded in a cell but are not part of its key, so that a new torch does not invalidate
a campaign; the page lists all versions.
"""

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from impasto.config import TrainConfig, flat_defaults, flatten, resolve
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.files import cache_dir, write_json_lines
from impasto.noise.laws import noise_law, truncate_to_schedule
from impasto.reproduce.claims import Arm, Unit

FILE = "cells.jsonl.gz"
VERSION = 1
"""Of the procedure (runner.py and the protocols): incremented when scores change, so that all cells are rerun."""
KEY_SETTINGS = (
    *("noise", "noise_mean", "noise_std", "noise_shift", "objective", "adapter", "rank", "alpha", "targets", "lr"),
    *("steps", "batch", "accumulate", "weight_decay", "clip", "schedule", "warmup", "ema", "size", "optimizer"),
    *("weighting", "precision"),
)
"""Settings in every key; the others are included only if they differ from the defaults, so that a new setting of
TrainConfig does not change the keys of old cells."""
QUANTISED = re.compile(r"\bthe base in (nf4|int8|fp8)\b")
NON_KEY_SETTINGS = {
    "base",
    "image",
    "caption",
    "out",
    "recipe",
    "seed",
    "preview",
    "tensorboard",
    "device",
    "components",
}


@dataclass(frozen=True)
class Cell:
    """arm, unit: names; spec: all that the scores depend on, JSON values."""

    arm: str
    unit: Unit
    spec: Mapping[str, Any]

    @property
    def key(self) -> str:
        """sha256 of the spec, hex."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def name(self) -> str:
        """`mu-6--unifont-cat-0--0123456789ab`, for messages and the cache folder."""
        return f"{slug(self.arm)}--{slug(self.unit)}--{self.key[:12]}"


def slug(text: str) -> str:
    """The text with runs of other characters than letters, digits, dot, plus and minus replaced by one minus."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-")


def settings_of(arm: Arm, family: Family, base: str) -> dict[str, Any]:
    """The spec's part "arm". Raises UserError when this base does not support the arm."""
    if arm.absent:
        raise UserError(arm.absent)
    if arm.needs and arm.needs not in family.kinds:
        raise UserError(f"this base has no layers of the kind {arm.needs!r}")
    if arm.how != "train" and not arm.settings:
        return {"how": arm.how, **arm.options}
    layers = {"targets": resolve(arm.layers_of, base).adapter.targets} if arm.layers_of else {}
    settings = key_settings(config_of({**arm.settings, **layers}, family, base, arm.recipe))
    return {"how": arm.how, "settings": settings, **arm.options}


def config_of(settings: Mapping[str, Any], family: Family, base: str, recipe: str = "style-friendly") -> TrainConfig:
    """The resolved config of an arm, with the base's learning rate, steps and batch. Raises UserError if the base does
    not support it."""
    config = resolve(recipe, base, **{**settings, "precision": family.precision})
    truncate_to_schedule(noise_law(config), family.schedule)
    for target in getattr(config.adapter, "targets", ()):
        if target in ("image_stream", "text_stream") and target not in family.kinds:
            raise UserError(f"this base has no layers of the kind {target!r}")
    return config


def key_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings in a cell's key, see STATED."""
    default, own = flat_defaults(), flatten(config)
    return {
        key: own.get(key)
        for key in sorted(own.keys() | set(KEY_SETTINGS))
        if key not in NON_KEY_SETTINGS and (key in KEY_SETTINGS or own.get(key) != default.get(key))
    }


def pictures(spec: Mapping[str, Any]) -> int:
    """The number of a cell's images."""
    return len(spec["prompts"]) * spec.get("count", 1)


def quantised(running: Sequence[str], spec: Mapping[str, Any]) -> bool:
    """Whether a run quantised the base to fit into memory although its arm does not.

    running: the execution plan in its recipe.toml.
    """
    asked = "quantize" in spec.get("arm", {}).get("settings", {})
    return not asked and any(QUANTISED.search(line) for line in running)


def write(file: Path, cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
    """Add or replace a cell in the file, atomically and under a lock; returns its content. result: scores and
    provenance."""
    content = {"key": cell.key, "arm": cell.arm, "unit": cell.unit, "spec": cell.spec, **result}
    lock = cache_dir("locks", hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:24])
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        write_all(file, read_all(file) | {cell.key: content})
    return content


def write_all(file: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file with these cells, sorted by name: the same cells give the same bytes."""
    ordered = sorted(cells.values(), key=lambda cell: (slug(cell["arm"]), slug(cell["unit"]), cell["key"]))
    write_json_lines(file, ordered)


def read_all(file: Path) -> dict[str, dict[str, Any]]:
    """{key: content} of every cell, {} without a file. Raises UserError with the line number when a cell cannot be read
    or was edited."""
    if not file.is_file():
        return {}
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or move it away") from None
    return {content["key"]: content for content in (read(line, f"{file}, line {n}") for n, line in enumerate(lines, 1))}


def read(line: str, where: str) -> dict[str, Any]:
    """One cell. Raises UserError when it is not JSON, lacks a part, or its key does not fit its spec."""
    mend = "remove the line; the same command runs the cell again"
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: the cell cannot be read ({error}): {mend}") from None
    parts = {"key": str, "arm": str, "unit": str, "spec": dict, "scores": dict}
    wrong = [n for n, kind in parts.items() if not isinstance(content, dict) or not isinstance(content.get(n), kind)]
    if wrong:
        raise UserError(f"{where}: the cell is not complete (no {', '.join(wrong)}): {mend}")
    cell = Cell(content["arm"], content["unit"], content["spec"])
    if cell.key != content["key"]:
        raise UserError(f"{where}: the cell {cell.name} was edited (its key does not match): {mend}")
    scores = content["scores"].values()
    if not scores or not all(isinstance(value, int | float) and math.isfinite(value) for value in scores):
        raise UserError(f"{where}: the cell {cell.name} has no scores, or scores that are not finite: {mend}")
    if not isinstance(content.get("running", []), list):
        raise UserError(f'{where}: the cell {cell.name} has an invalid entry "running": {mend}')
    return content
