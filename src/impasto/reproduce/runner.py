"""Running one cell through the public functions: reference -> train (or not) -> generate -> scores.

What depends on the world (references, prompts, instruments) is a protocol's: `small_world.py` or `paper.py`.
"""

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from impasto import families
from impasto.adapters.io import WEIGHTS
from impasto.config import GenerateConfig, resolve
from impasto.errors import UserError
from impasto.evaluate.samples import read_folder
from impasto.families.base import Family, quiet
from impasto.generate import Sampling, generate_folder
from impasto.paths import atomic, cache_dir
from impasto.reproduce.cells import VERSION, Cell
from impasto.reproduce.claims import Measure, Unit
from impasto.train import train

PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft")


class World(Protocol):
    """References, prompts and instruments of a campaign."""

    name: str
    measures: Mapping[str, Measure]
    sizes: Sequence[str]  # of a campaign, the largest last
    undecided: Sequence[str]  # sizes whose cells never decide
    shown: Sequence[str]  # metrics on the page

    def describe(self) -> str: ...

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        """The pairs of a size, each with its part of the spec (reference, caption, prompts, seed).

        where: "heldout" (styles that the base never saw) or "known" (no reference: styles that it knows).
        """
        ...

    def instruments(self) -> dict[str, Any]:
        """What measures, by hash."""
        ...

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        """The reference."""
        ...

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        """The mean scores of the pictures in `folder`."""
        ...


@dataclass(frozen=True)
class Place:
    """Where and on what cells are run."""

    base: str = "mini-sd3"
    device: str = "auto"
    precision: str = "auto"

    def family(self) -> Family:
        return _family(self.base, self.device, self.precision)


@cache
def _family(base: str, device: str, precision: str) -> Family:
    return families.load(base, device=device, precision=precision)


def sampling_of(family: Family) -> dict[str, Any]:
    """How pictures are drawn: steps, guidance and size as the base's card says, strength 1."""
    filled = Sampling().on(family)
    return {"steps": filled.steps, "guidance": filled.guidance, "size": filled.size, "strength": 1.0}


def whole_spec(world: World, family: Family, arm: Mapping[str, Any], unit: Mapping[str, Any]) -> dict[str, Any]:
    """All that the scores of a cell depend on."""
    return {
        "version": VERSION,
        "protocol": world.name,
        "base": family.hash,
        "arm": dict(arm),
        "sampling": sampling_of(family),
        "instruments": world.instruments(),
        **unit,
    }


def run_cell(cell: Cell, world: World, place: Place) -> dict[str, Any]:
    """What the cell's file holds beside its spec. Goes on where an earlier attempt stopped.

    Raises UserError when the base is another one here, or the cell cannot be run.
    """
    started = time.perf_counter()
    family = place.family()
    if family.hash != cell.spec["base"]:
        raise UserError(
            f"the base {place.base!r} is another one here: {family.hash[:12]}, not {cell.spec['base'][:12]}"
        )
    folder = cache_dir("reproduce", cell.spec["base"][:12], cell.name)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        reference = reference_file(cell, world, folder)
        draw(cell, place, family, folder, reference)
        scores = world.scores(folder / "images", cell.spec, reference)
    shutil.rmtree(folder / "style" / "state", ignore_errors=True)  # the adapter itself stays
    return {
        "scores": {name: round(value, 6) for name, value in scores.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "device": family.device,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def reference_file(cell: Cell, world: World, folder: Path) -> Path | None:
    """`reference.png`, None where there is no reference."""
    picture = world.picture(cell.spec)
    if picture is None:
        return None
    with atomic(folder / "reference.png") as path:
        picture.save(path)
    return folder / "reference.png"


def draw(cell: Cell, place: Place, family: Family, folder: Path, reference: Path | None) -> None:
    """The cell's pictures in `folder/images`, unless they are all there."""
    spec, images = cell.spec, folder / "images"
    if complete(images, spec["prompts"]):
        return
    shutil.rmtree(images, ignore_errors=True)
    arm = spec["arm"]
    if arm["how"] == "train":
        style = folder / "style"
        own = {key: value for key, value in arm["settings"].items() if value is not None}
        settings = own | {"image": (reference,), "caption": (spec["caption"],), "seed": spec["seed"], "out": style}
        train(resolve("style-friendly", place.base, **settings, device=place.device, preview=False, tensorboard=False))
        assert (style / WEIGHTS).is_file()
        more: dict[str, Any] = {"style": (f"{style}:{spec['sampling']['strength']:g}",)}
    else:
        more = HOW[arm["how"]](arm, spec, reference)
    generate_folder(
        GenerateConfig(
            base=place.base,
            prompt=tuple(spec["prompts"]),
            seed=1000 * spec["seed"],  # the pictures of two seeds share no noise
            count=spec.get("count", 1),
            steps=spec["sampling"]["steps"],
            guidance=spec["sampling"]["guidance"],
            size=spec["sampling"]["size"],
            out=images,
            device=place.device,
            precision=family.precision,
            **more,
        )
    )


def complete(images: Path, prompts: list[str]) -> bool:
    """Whether all pictures of a cell are there."""
    if not images.is_dir():
        return False
    try:
        return len(read_folder(images)) % len(prompts) == 0 and {s.prompt for s in read_folder(images)} == set(prompts)
    except UserError:
        return False


def prompted(arm: Mapping[str, Any], spec: Mapping[str, Any], reference: Path | None) -> dict[str, Any]:
    """The base alone: the style is in the words."""
    return {}


HOW = {"prompt": prompted}
"""Generators that train nothing: what they add to the settings of `generate`."""
