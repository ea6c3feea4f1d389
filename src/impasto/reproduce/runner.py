"""Run one cell through the public functions: reference -> train (or not) -> generate -> scores.

References, prompts and instruments are provided by a `World`: `small_world.py` or `paper.py`.
"""

import math
import platform
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from filelock import FileLock
from PIL import Image

from impasto.bases import loader
from impasto.config import resolve
from impasto.errors import UserError
from impasto.evaluation.equal_text import STRENGTHS
from impasto.families.base import Family, quiet
from impasto.files import atomic, cache_dir
from impasto.generation import generate
from impasto.guidance.config import PromptSwitch, StyleAligned
from impasto.guidance.prompt_switch import grid, switch_prompts
from impasto.reproduce.cells import VERSION, Cell, pictures, quantised
from impasto.reproduce.claims import Measure, Unit
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.sampling.samplers import DEFAULT, make_scheduler
from impasto.styles.card import CARD
from impasto.styles.parts import has_weights
from impasto.training.train import train

PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft")


class World(Protocol):
    """References, prompts and instruments of a campaign.

    sizes: of a campaign, the largest last. undecided: sizes without verdicts. shown: metrics on the page.
    to_reference: whether the deciding scores are measured against the reference.
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

    @property
    def jobs(self) -> Mapping[str, Any]:
        """Further methods of generating an arm's images, as HOW."""
        ...

    def describe(self) -> str: ...

    def ready(self, cells: str) -> bool:
        """Whether the references of a size are there."""
        ...

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        """The pairs of a size with their parts of the spec (reference, caption, prompts, seed).

        where: see `claims.Arm`.
        """
        ...

    def instruments(self) -> dict[str, Any]:
        """{instrument: hash}."""
        ...

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        """sha256 of the available reference of a spec; None without a reference."""
        ...

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        """The reference image, None without one."""
        ...

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        """The mean scores of the images in `folder`."""
        ...


@dataclass(frozen=True)
class BaseSpec:
    """The base on which cells are run, with device and precision."""

    base: str = "mini-sd3"
    device: str = "auto"
    precision: str = "auto"

    def family(self) -> Family:
        return _family(self.base, self.device, self.precision)


@cache
def _family(base: str, device: str, precision: str) -> Family:
    return loader.load(base, device=device, precision=precision)


def sampling_of(family: Family) -> dict[str, Any]:
    """The spec's sampling: steps, guidance, size and sampler (where it is not the base's own) of the base's card,
    strength 1."""
    own = Sampling().on(family)
    values = {"steps": own.steps, "guidance": own.guidance, "size": own.size}
    values |= {} if own.sampler == DEFAULT else {"sampler": own.sampler}
    return values | own.temperatures | {"strength": 1.0, "precision": family.precision}


def build_spec(world: World, family: Family, arm: Mapping[str, Any], unit: Mapping[str, Any]) -> dict[str, Any]:
    """All that the scores of a cell depend on. A world with `sampling(family)` has its own in place of the base's."""
    own = getattr(world, "sampling", lambda family: {})
    return {
        "version": VERSION,
        "protocol": world.name,
        "base": family.hash,
        "arm": dict(arm),
        "instruments": world.instruments(),
        **unit,
        "sampling": sampling_of(family) | own(family) | unit.get("sampling", {}),
    }


def run_cell(cell: Cell, world: World, place: BaseSpec) -> dict[str, Any]:
    """The cell's results, without its spec. Resumes an earlier attempt.

    Waits for another process that runs the same cell and reuses its images. Raises UserError when base, reference or
    instruments differ from the spec, or the cell cannot be run.
    """
    with FileLock(cache_dir("reproduce", cell.spec["base"][:12]) / f".{cell.name}.lock"):
        return run_locked(cell, world, place)


def run_locked(cell: Cell, world: World, place: BaseSpec) -> dict[str, Any]:
    """`run_cell` while holding the cell's lock."""
    started = time.perf_counter()
    family = check_cell(cell, world, place)
    folder = cache_dir("reproduce", cell.spec["base"][:12], cell.name)
    if quantised(running(folder / "style"), cell.spec):  # by an older version: run it again
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        reference = reference_file(cell, world, folder)
        generate_images(cell, place, folder, reference, world.jobs)
        scores = world.scores(folder / "images", cell.spec, reference)
    shutil.rmtree(folder / "style" / "state", ignore_errors=True)  # the adapter is kept
    return {
        "scores": {name: round(value, 6) for name, value in scores.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "device": family.device,
        "running": running(folder / "style"),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def check_cell(cell: Cell, world: World, place: BaseSpec) -> Family:
    """The base. Raises UserError when base, reference or instruments differ from the spec."""
    family = place.family()
    if family.hash != cell.spec["base"]:
        raise UserError(f"the base {place.base!r} differs here: {family.hash[:12]}, not {cell.spec['base'][:12]}")
    for what, own in (("instruments", world.instruments()), ("reference_sha256", world.reference_hash(cell.spec))):
        if cell.spec.get(what) != own:
            raise UserError(f"{what.partition('_')[0]} differs here: {own}, not {cell.spec.get(what)}")
    return family


def run_curve(cell: Cell, world: World, place: BaseSpec) -> dict[str, Any]:
    """{"curve": {strength: scores}} of a cell at the other strengths of `equal_text.STRENGTHS`. Its style is taken from
    the cache, or trained again. Waits for another process that runs the cell. Raises UserError as `run_cell` does."""
    with FileLock(cache_dir("reproduce", cell.spec["base"][:12]) / f".{cell.name}.lock"):
        started, folder = time.perf_counter(), cache_dir("reproduce", cell.spec["base"][:12], cell.name)
        check_cell(cell, world, place)
        folder.mkdir(parents=True, exist_ok=True)
        curve = {}
        with quiet():
            reference = reference_file(cell, world, folder)
            for strength in STRENGTHS:
                if strength == 1.0:
                    continue
                spec = {**cell.spec, "sampling": cell.spec["sampling"] | {"strength": strength}}
                own, name = Cell(cell.arm, cell.unit, spec), f"images-{strength:g}"
                generate_images(own, place, folder, reference, world.jobs, name)
                found = world.scores(folder / name, spec, reference)
                curve[f"{strength:g}"] = {score: round(value, 6) for score, value in found.items()}
        shutil.rmtree(folder / "style" / "state", ignore_errors=True)
        return {"curve": curve, "curve_seconds": round(time.perf_counter() - started, 1)}


def running(style: Path) -> list[str]:
    """The execution plan in a run's recipe.toml (such as a quantised base); [] without a run."""
    file = style / "recipe.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["impasto"]["running"] if file.is_file() else []


def reference_file(cell: Cell, world: World, folder: Path) -> Path | None:
    """Write `reference.png`; None without a reference."""
    picture = world.picture(cell.spec)
    if picture is None:
        return None
    with atomic(folder / "reference.png") as path:
        picture.save(path)
    return folder / "reference.png"


def generate_images(
    cell: Cell,
    place: BaseSpec,
    folder: Path,
    reference: Path | None,
    jobs: Mapping[str, Any] = MappingProxyType({}),
    name: str = "images",
) -> None:
    """Generate the cell's images into `folder/images` (or another `name`), `0000.png` on, unless they exist. A job that
    returns None has written them into `folder/images.part` itself."""
    spec, images, part = cell.spec, folder / name, folder / f"{name}.part"
    if images.is_dir():
        if len(list(images.glob("*.png"))) == pictures(spec):
            return
        shutil.rmtree(images)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    asked = spec["sampling"]
    sampling = Sampling(asked["steps"], asked["guidance"], "", asked["size"], style_guidance=0.0, base_guidance=0.0)
    sampling = replace(sampling, sampler=asked.get("sampler", DEFAULT))
    job = {**HOW, **jobs}[spec["arm"]["how"]](spec, place, folder, reference)
    if job is None:
        part.rename(images)
        return
    prompts, more = job
    own = {"count": spec.get("count", 1), "device": place.device, "precision": spec["sampling"]["precision"], **more}
    seed = 1000 * spec["seed"]  # so that seeds share no noise
    for i, (image, info) in enumerate(generate(place.base, prompts, seed=seed, sampling=sampling, **own)):
        save_png(image, info, part / f"{i:04d}.png")
    part.rename(images)


Job = tuple[list[str], dict[str, Any]]
"""(prompts, further arguments of `generate`)."""


def train_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """Train a style on the reference. The base is quantised only if the arm says so, since the key would not show
    it."""
    style = folder / "style"
    own = {"quantize": "none"} | {key: value for key, value in spec["arm"]["settings"].items() if value is not None}
    own |= {"image": (reference,), "caption": (spec["caption"],), "seed": spec["seed"], "out": style}
    if not (has_weights(style) and (style / CARD).is_file()):  # the checkpoints of a finished one are gone
        train(resolve("style-friendly", place.base, **own, device=place.device, preview=False, tensorboard=False))
    return spec["prompts"], {"styles": (f"{style}:{spec['sampling']['strength']:g}",)}


def prompt_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The base alone, with the style in the prompt."""
    return spec["prompts"], {}


def plain_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The base alone, without the style in the prompt."""
    return spec["plain"], {}


@dataclass(frozen=True)
class RemoveWords(PromptSwitch):
    """A switch to the image's prompt without its suffix `to`."""

    def second(self, prompt: str) -> str:
        return prompt.removesuffix(self.to or "")


def style_words(spec: Mapping[str, Any]) -> str:
    """The suffix that the prompts have and the plain ones do not."""
    return spec["prompts"][0].removeprefix(spec["plain"][0])


def omit_first_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The style's words are omitted in the first steps."""
    return spec["plain"], {"guidances": [PromptSwitch("{prompt}" + style_words(spec), switch_level(spec, place))]}


def only_first_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The style's words are used in the first steps only."""
    return spec["prompts"], {"guidances": [RemoveWords(style_words(spec), switch_level(spec, place))]}


def switch_level(spec: Mapping[str, Any], place: BaseSpec) -> float:
    """The log-SNR of the first step after the switch."""
    return levels_of(place.family(), spec["sampling"])[spec["arm"]["first_steps"]]


def levels_of(family: Family, sampling: Mapping[str, Any]) -> list[float]:
    """The log-SNR of every step of a spec's sampling."""
    return grid(family, sampling["steps"], sampling["size"], make_scheduler(sampling.get("sampler", DEFAULT), family))


def resolve_switch(arm: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], str]:
    """(the spec's part "arm", suffix of its description).

    A log-SNR "at" becomes the number of sampling steps below it, so that levels between the same steps are one cell.
    Raises UserError when one prompt would be used in all steps.
    """
    own = dict(arm)
    if "at" not in own:
        return own, ""
    values = sampling_of(family)
    switch = switch_prompts(family, str, own.pop("at"), levels_of(family, values))
    first = switch.in_second.index(True)
    return own | {"first_steps": first}, f" (the first {first} of {values['steps']} steps)"


def aligned_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """StyleAligned: attention shared with the reference, no training."""
    assert reference is not None
    shift = spec["arm"]["shift"] + math.log(spec["sampling"]["strength"])  # its tokens count so many times
    return spec["prompts"], {"guidances": [StyleAligned(reference, spec["caption"], shift=shift)]}


HOW = {
    "train": train_job,
    "prompt": prompt_job,
    "plain": plain_job,
    "omit-first": omit_first_job,
    "only-first": only_first_job,
    "aligned": aligned_job,
}
"""Methods of generating an arm's images."""
SCALED, UNSCALED = ("train", "aligned", "folder"), ("prompt",)
"""Methods whose images depend on the sampling's strength, and the base alone, whose curve is one point."""
PLAIN = ("plain", "omit-first")
"""Methods whose images store a prompt without the style, so that their CLIP-T is not comparable with other arms'."""
