"""A cell: one arm, one reference, one seed. Its key says all that its scores depend on, its file holds the scores.

    key = sha256 of {version, base's weights, arm's settings, sampling, reference, caption, prompts, seed, instruments}

The file `<arm>--<unit>--<key>.json` is small and meant to be committed; pictures and adapter stay in the cache. The
versions of the libraries are in the file, not in the key: a new torch does not throw a campaign away, the page names
every version that it was made with.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.config import TrainConfig, as_dict, check_ranges, resolve
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.noise.laws import within
from impasto.objectives import objective
from impasto.paths import atomic
from impasto.plan import noise_law
from impasto.reproduce.claims import Arm, Unit

VERSION = 1
"""Of how a cell is run (runner.py and the protocols): raised when that changes scores, and all cells are run again."""
STATED = (
    *("noise", "noise_mean", "noise_std", "noise_shift", "objective", "adapter", "rank", "alpha", "targets", "lr"),
    *("steps", "batch", "accumulate", "weight_decay", "clip", "schedule", "warmup", "ema", "size", "optimizer"),
    *("weighting", "precision"),
)
"""Settings that every key states; the others only where they differ from the defaults, so that a new key of
TrainConfig, which does nothing by default, leaves the keys of old cells as they are."""
QUANTISED = re.compile(r"\bthe base in (nf4|int8|fp8)\b")
NOT_STATED = {"base", "image", "caption", "out", "recipe", "seed", "preview", "tensorboard", "device", "components"}


@dataclass(frozen=True)
class Cell:
    """arm, unit: names; spec: all that the scores depend on, plain JSON values."""

    arm: str
    unit: Unit
    spec: Mapping[str, Any]

    @property
    def key(self) -> str:
        """sha256 of the spec, hex."""
        return hashlib.sha256(json.dumps(self.spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def name(self) -> str:
        """`mu-6--unifont-cat-0--0123456789ab`, for its file and its folder in the cache."""
        return f"{slug(self.arm)}--{slug(self.unit)}--{self.key[:12]}"


def slug(text: str) -> str:
    """Letters, digits, dot and minus; everything else becomes one minus."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-")


def settings_of(arm: Arm, family: Family, base: str) -> dict[str, Any]:
    """The part of a spec that says how an arm makes its pictures. Raises UserError where this base cannot."""
    if arm.absent:
        raise UserError(arm.absent)
    if arm.needs and arm.needs not in family.kinds:
        raise UserError(f"this base has no layers of the kind {arm.needs!r}")
    if arm.how != "train":
        return {"how": arm.how, **arm.options}
    layers = {"targets": resolve(arm.layers_of, base).targets} if arm.layers_of else {}
    return {"how": "train", "settings": stated(config_of({**arm.settings, **layers}, family, base))}


def config_of(settings: Mapping[str, Any], family: Family, base: str) -> TrainConfig:
    """The resolved config of an arm; learning rate, steps and batch are the base's own. UserError on what it lacks."""
    config = resolve("style-friendly", base, **{**settings, "precision": family.precision})
    check_ranges(config)
    within(noise_law(config), family.schedule)
    objective(config.objective)
    for target in config.targets:
        if target in ("image_stream", "text_stream") and target not in family.kinds:
            raise UserError(f"this base has no layers of the kind {target!r}")
    return config


def stated(config: TrainConfig) -> dict[str, Any]:
    """The settings of a key, see STATED."""
    default, own = as_dict(TrainConfig()), as_dict(config)
    return {
        key: own.get(key)
        for key in sorted(own.keys() | set(STATED))
        if key not in NOT_STATED and (key in STATED or own.get(key) != default.get(key))
    }


def pictures(spec: Mapping[str, Any]) -> int:
    """How many a cell has."""
    return len(spec["prompts"]) * spec.get("count", 1)


def quantised(running: Sequence[str], spec: Mapping[str, Any]) -> bool:
    """Whether a run had its base in fewer bits to fit it into memory, though its arm does not say so.

    running: how it was fitted, as its recipe.toml says.
    """
    asked = "quantize" in spec.get("arm", {}).get("settings", {})
    return not asked and any(QUANTISED.search(line) for line in running)


def write(folder: Path, cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write the cell's file, atomically; returns its content. result: scores and what they were measured with."""
    content = {"key": cell.key, "arm": cell.arm, "unit": cell.unit, "spec": cell.spec, **result}
    with atomic(folder / f"{cell.name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return content


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """{key: content} of every cell file. Raises UserError, with its name, where one cannot be read or was edited."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = read(path)
        found[content["key"]] = content
    return found


def read(path: Path) -> dict[str, Any]:
    """One cell file. Raises UserError when it is no JSON, lacks a part, or its key does not fit its spec."""
    mend = "remove it, and the same command makes it anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the cell {path} cannot be read ({error}): {mend}") from None
    parts = {"key": str, "arm": str, "unit": str, "spec": dict, "scores": dict}
    wrong = [n for n, kind in parts.items() if not isinstance(content, dict) or not isinstance(content.get(n), kind)]
    if wrong:
        raise UserError(f"the cell {path} is not complete (no {', '.join(wrong)}): {mend}")
    if Cell(content["arm"], content["unit"], content["spec"]).key != content["key"]:
        raise UserError(f"the cell {path} was changed by hand (its key is another one's): {mend}")
    scores = content["scores"].values()
    if not scores or not all(isinstance(value, int | float) and math.isfinite(value) for value in scores):
        raise UserError(f"the cell {path} holds scores that are no numbers, or none: {mend}")
    if not isinstance(content.get("running", []), list):
        raise UserError(f"the cell {path} does not say how it was run: {mend}")
    return content
