"""Running one cell through the public functions: reference -> train (or not) -> generate -> scores.

What depends on the world (references, prompts, instruments) is a protocol's: `small_world.py` or `paper.py`.
"""

import platform
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from PIL import Image

from impasto.bases import loader
from impasto.config import resolve
from impasto.errors import UserError
from impasto.families.base import Family, quiet
from impasto.files import atomic, cache_dir
from impasto.generation import generate
from impasto.guidance.config import PromptSwitch, StyleAligned
from impasto.guidance.prompt_switch import grid, switch_prompts
from impasto.reproduce.cells import VERSION, Cell, pictures, quantised
from impasto.reproduce.claims import Measure, Unit
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.training.train import train

PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft")


class World(Protocol):
    """References, prompts and instruments of a campaign.

    sizes: of a campaign, the largest last. undecided: sizes whose cells never decide. shown: metrics on the page.
    to_reference: whether the scores that decide are measured against the reference.
    """

    @property
    def name(self) -> str: ...

    @property
    def measures(self) -> Mapping[str, Measure]: ...

    @property
    def sizes(self) -> Sequence[str]: ...

    @property
    def undecided(self) -> Sequence[str]: ...

    @property
    def shown(self) -> Sequence[str]: ...

    @property
    def to_reference(self) -> bool: ...

    def describe(self) -> str: ...

    def ready(self, cells: str) -> bool:
        """Whether the references of a size are there."""
        ...

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        """The pairs of a size, each with its part of the spec (reference, caption, prompts, seed).

        where: as `claims.Arm.where` says.
        """
        ...

    def instruments(self) -> dict[str, Any]:
        """What measures, by hash."""
        ...

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        """sha256 of the reference that is here, as a spec states it; None where there is none."""
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
    return loader.load(base, device=device, precision=precision)


def sampling_of(family: Family) -> dict[str, Any]:
    """How pictures are drawn: steps, guidance and size as the base's card says, strength 1."""
    own = Sampling().on(family)
    told = {"steps": own.steps, "guidance": own.guidance, "size": own.size}
    return told | {"strength": 1.0, "precision": family.precision}


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

    Another process that runs the same cell is waited for, and its pictures are taken. Raises UserError when base,
    reference or instruments are others here, or the cell cannot be run.
    """
    with FileLock(cache_dir("reproduce", cell.spec["base"][:12]) / f".{cell.name}.lock"):
        return run_alone(cell, world, place)


def run_alone(cell: Cell, world: World, place: Place) -> dict[str, Any]:
    """`run_cell`, when no other process runs this cell."""
    started = time.perf_counter()
    family = place.family()
    if family.hash != cell.spec["base"]:
        raise UserError(
            f"the base {place.base!r} is another one here: {family.hash[:12]}, not {cell.spec['base'][:12]}"
        )
    for what, own in (("instruments", world.instruments()), ("reference_sha256", world.reference_hash(cell.spec))):
        if cell.spec.get(what) != own:
            raise UserError(f"{what.partition('_')[0]} is another one here: {own}, not {cell.spec.get(what)}")
    folder = cache_dir("reproduce", cell.spec["base"][:12], cell.name)
    if quantised(running(folder / "style"), cell.spec):  # of a time when memory decided: it is run anew
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        reference = reference_file(cell, world, folder)
        draw(cell, place, folder, reference)
        scores = world.scores(folder / "images", cell.spec, reference)
    shutil.rmtree(folder / "style" / "state", ignore_errors=True)  # the adapter itself stays
    return {
        "scores": {name: round(value, 6) for name, value in scores.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "device": family.device,
        "running": running(folder / "style"),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def running(style: Path) -> list[str]:
    """How the run was fitted into memory, as its recipe.toml says (a quantised base, for one); [] where none ran."""
    file = style / "recipe.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["impasto"]["running"] if file.is_file() else []


def reference_file(cell: Cell, world: World, folder: Path) -> Path | None:
    """`reference.png`, None where there is no reference."""
    picture = world.picture(cell.spec)
    if picture is None:
        return None
    with atomic(folder / "reference.png") as path:
        picture.save(path)
    return folder / "reference.png"


def draw(cell: Cell, place: Place, folder: Path, reference: Path | None) -> None:
    """The cell's pictures in `folder/images`, `0000.png` on, unless they are there already."""
    spec, images, part = cell.spec, folder / "images", folder / "images.part"
    if images.is_dir():
        if len(list(images.glob("*.png"))) == pictures(spec):
            return
        shutil.rmtree(images)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    asked = spec["sampling"]
    sampling = Sampling(asked["steps"], asked["guidance"], "", asked["size"], style_guidance=0.0, base_guidance=0.0)
    prompts, more = HOW[spec["arm"]["how"]](spec, place, folder, reference)
    own = {"count": spec.get("count", 1), "device": place.device, "precision": spec["sampling"]["precision"], **more}
    seed = 1000 * spec["seed"]  # the pictures of two seeds share no noise
    for i, (image, info) in enumerate(generate(place.base, prompts, seed=seed, sampling=sampling, **own)):
        save_png(image, info, part / f"{i:04d}.png")
    part.rename(images)


Job = tuple[list[str], dict[str, Any]]
"""Prompts, and what `generate` is told beside them."""


def trained(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """A style is trained on the reference, strength as the spec says; the base in fewer bits only where the arm says
    so, as the key would not tell it."""
    style = folder / "style"
    own = {"quantize": "none"} | {key: value for key, value in spec["arm"]["settings"].items() if value is not None}
    own |= {"image": (reference,), "caption": (spec["caption"],), "seed": spec["seed"], "out": style}
    train(resolve("style-friendly", place.base, **own, device=place.device, preview=False, tensorboard=False))
    return spec["prompts"], {"styles": (f"{style}:{spec['sampling']['strength']:g}",)}


def prompted(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """The base alone: the style is in the words."""
    return spec["prompts"], {}


def plain(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """The base alone, no word of the style."""
    return spec["plain"], {}


@dataclass(frozen=True)
class Without(PromptSwitch):
    """A switch to the picture's own prompt without its last words, `to`."""

    def second(self, prompt: str) -> str:
        return prompt.removesuffix(self.to or "")


def style_words(spec: Mapping[str, Any]) -> str:
    """What the prompts have and the plain ones have not."""
    return spec["prompts"][0].removeprefix(spec["plain"][0])


def omit_first(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """The words of the style come after the first steps; before, there is only the thing."""
    return spec["plain"], {"guidances": [PromptSwitch("{prompt}" + style_words(spec), switched_at(spec, place))]}


def only_first(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """The words of the style are there in the first steps only."""
    return spec["prompts"], {"guidances": [Without(style_words(spec), switched_at(spec, place))]}


def switched_at(spec: Mapping[str, Any], place: Place) -> float:
    """The log-SNR of the step after the first ones."""
    return grid(place.family(), spec["sampling"]["steps"], spec["sampling"]["size"])[spec["arm"]["first_steps"]]


def on_grid(arm: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], str]:
    """The part of a spec that says how, and what a person is told besides.

    A log-SNR "at" becomes the number of sampling steps that lie below it: what two levels between the same steps draw
    is the same. Raises UserError where one prompt would be used in all steps.
    """
    own = dict(arm)
    if "at" not in own:
        return own, ""
    told = sampling_of(family)
    switch = switch_prompts(family, str, own.pop("at"), grid(family, told["steps"], told["size"]))
    first = switch.in_second.index(True)
    return own | {"first_steps": first}, f" (the first {first} of {told['steps']} steps)"


def aligned(spec: Mapping[str, Any], place: Place, folder: Path, reference: Path | None) -> Job:
    """StyleAligned: the reference lends its attention, nothing is trained."""
    assert reference is not None
    return spec["prompts"], {"guidances": [StyleAligned(reference, spec["caption"], shift=spec["arm"]["shift"])]}


HOW = {
    "train": trained,
    "prompt": prompted,
    "plain": plain,
    "omit-first": omit_first,
    "only-first": only_first,
    "aligned": aligned,
}
"""How an arm makes its pictures."""
PLAIN = ("plain", "omit-first")
"""Of these the prompt that is stored with a picture has no word of the style. So their CLIP-T is against another text
than that of the other arms, and cannot be compared with it."""
