"""Methods of generating a cell's images after training on a folder: `folder`, `teacher`, `distill`, `untaught`.

Trained styles lie in the cache by the hash of everything that they depend on, so that cells which share a training
(styles of one folder, students of one teacher) run it once.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock

from impasto.config import resolve
from impasto.files import atomic, cache_dir
from impasto.generation import generate
from impasto.reproduce import image_sets
from impasto.reproduce.runner import BaseSpec, Job
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.training.train import train

EXTRA = "scores.json"
"""Scores that a job stored in a cell's folder."""


def content_hash(content: Mapping[str, Any]) -> str:
    """sha256 of JSON values, hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def trained(
    spec: Mapping[str, Any],
    place: BaseSpec,
    own: Mapping[str, Any],
    more: Mapping[str, Any] = MappingProxyType({}),
    images: Path | None = None,
) -> Path:
    """The style folder of a training, run unless it is in the cache.

    own: {settings, data, ...}: all that it depends on beside base and seed. images: the folder, by default the set
    `data`. more: settings that follow from `own`,
    such as the path of a teacher.
    """
    content = {"base": spec["base"], "precision": spec["sampling"]["precision"], "seed": spec["seed"], **own}
    folder = cache_dir("reproduce", spec["base"][:12], "trained", content_hash(content)[:20])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "done").is_file():
            if images is None:
                images = image_sets.write(own["data"], set_folder(own["data"]))
            given = {key: value for key, value in own["settings"].items() if value is not None}
            fixed = {"image": (images,), "seed": spec["seed"], "out": folder / "style", "device": place.device}
            quiet = {"preview": False, "tensorboard": False, "quantize": "none"}
            train(resolve("style-friendly", place.base, **{**quiet, **given, **more, **fixed}))
            shutil.rmtree(folder / "style" / "state", ignore_errors=True)
            (folder / "done").touch()
    return folder / "style"


def set_folder(data: Mapping[str, Any]) -> Path:
    """Where a set lies in the cache."""
    return cache_dir("reproduce", "sets", image_sets.digest(data)[:20])


def use(style: Path, spec: Mapping[str, Any], folder: Path) -> Job:
    """The job of generating with a trained style; the cell's folder links to it."""
    link = folder / "style"
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(style)
    return spec["prompts"], {"styles": (f"{style}:{spec['sampling']['strength']:g}",)}


def folder_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """Train on the unit's folder; with prior preservation on the prompts `prior` of its data."""
    prior = {"prior.prompt": tuple(spec["data"]["prior"])} if "prior" in spec["data"] else {}
    style = trained(spec, place, {"settings": spec["arm"]["settings"], "data": spec["data"]}, prior)
    return use(style, spec, folder)


def teacher_style(spec: Mapping[str, Any], place: BaseSpec) -> Path:
    """The unit's teacher; seed 0, whatever the cell's."""
    return trained({**spec, "seed": 0}, place, spec["teacher"])


def teacher_folder(spec: Mapping[str, Any]) -> Path:
    """Where the teacher's images of these prompts and seeds lie."""
    own = {name: spec[name] for name in ("base", "sampling", "teacher", "prompts", "seed")}
    return cache_dir("reproduce", spec["base"][:12], "taught", content_hash(own)[:20])


def teacher_images(spec: Mapping[str, Any], place: BaseSpec) -> Path:
    """The teacher's images of the cell's prompts from the cell's noise, generated unless they are there."""
    folder, asked = teacher_folder(spec), spec["sampling"]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "images").is_dir():
            shutil.rmtree(folder / "part", ignore_errors=True)
            (folder / "part").mkdir()
            styles = (f"{teacher_style(spec, place)}:1",)
            write_images(place, spec["prompts"], styles, spec["seed"], asked, folder / "part")
            (folder / "part").rename(folder / "images")
    return folder / "images"


def write_images(
    place: BaseSpec,
    prompts: Sequence[str],
    styles: Sequence[str],
    seed: int,
    asked: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write an image per prompt, from the noise that every arm of this seed has. asked: a spec's sampling."""
    sampling = Sampling(asked["steps"], asked["guidance"], "", asked["size"], style_guidance=0.0, base_guidance=0.0)
    own = {"seed": 1000 * seed, "sampling": sampling, "device": place.device, "precision": asked["precision"]}
    for i, (image, info) in enumerate(generate(place.base, prompts, styles=styles, **own)):
        save_png(image, info, folder / f"{i:04d}.png")


def teacher_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """The teacher's images."""
    shutil.copytree(teacher_images(spec, place), folder / "images.part", dirs_exist_ok=True)


def untaught_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """The base alone; the teacher's images are there for comparison."""
    teacher_images(spec, place)
    return spec["prompts"], {}


def distill_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> Job:
    """Train a student on the teacher's predictions. The arm's `distill` are settings of the objective."""
    teacher_images(spec, place)
    arm = spec["arm"]
    own = {"settings": arm["settings"], "data": spec["data"], "teacher": spec["teacher"], "distill": arm["distill"]}
    objective = {f"objective.{name}": value for name, value in arm["distill"].items()}
    more = {"objective": "distill", "objective.teacher": str(teacher_style(spec, place)), **objective}
    style = trained(spec, place, own, more)
    store_scores(folder, last_losses(style))
    return use(style, spec, folder)


def unshared_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """As `distill_job`, into a student with a text encoder of its own and prompts in its language; without settings the
    student as it is."""
    teacher_images(spec, place)
    arm, asked, styles = spec["arm"], spec["sampling"], ()
    student = replace(place, base=str(cache_dir("bases", arm["student"])))
    if "settings" in arm:
        own = {"settings": arm["settings"], "data": spec["data"], "teacher": spec["teacher"], "student": arm["sha256"]}
        more = {"objective": "distill", "objective.shared": False, "objective.teacher": str(teacher_style(spec, place))}
        style = trained(spec, student, own, more)
        store_scores(folder, last_losses(style))
        styles = (f"{style}:1",)
    prompts = [spec["data"]["translations"][label] for label in spec["prompts"]]
    write_images(student, prompts, styles, spec["seed"], asked, folder / "images.part")


def last_losses(style: Path, rows: int = 20) -> dict[str, float]:
    """Means of the distillation errors "out" and "feature" over the last steps, as far as they were logged."""
    file = style / "metrics.jsonl"
    own = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    found = {name: [row[name] for row in own if isinstance(row.get(name), float)] for name in ("out", "feature")}
    return {f"{name}_error": sum(v[-rows:]) / len(v[-rows:]) for name, v in found.items() if v}


def store_scores(folder: Path, scores: Mapping[str, float]) -> None:
    """Keep scores of a job for the cell."""
    with atomic(folder / EXTRA) as temporary:
        temporary.write_text(json.dumps(dict(scores)), encoding="utf-8")


def stored_scores(folder: Path) -> dict[str, float]:
    """Scores that a job stored; {} without."""
    file = folder / EXTRA
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


JOBS = {
    "folder": folder_job,
    "teacher": teacher_job,
    "untaught": untaught_job,
    "distill": distill_job,
    "unshared": unshared_job,
}
