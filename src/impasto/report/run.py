"""What a report reads: a style folder (recipe, metrics, card, reference) and folders of images with their scores."""

import json
import math
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.data import captions
from impasto.errors import UserError
from impasto.evaluate.samples import Sample, read_folder
from impasto.noise import laws
from impasto.noise.laws import Law


@dataclass(frozen=True)
class Run:
    """A style folder as it lies on disk. `metrics`: rows of metrics.jsonl in order of steps."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    card: str
    reference: Path | None

    def key(self, name: str) -> Any:
        """A key of the resolved recipe, at the top level or in one of its tables; None when it is not there."""
        tables = [self.recipe, *(value for value in self.recipe.values() if isinstance(value, dict))]
        return next((table[name] for table in tables if name in table), None)

    @property
    def caption(self) -> str:
        """The caption of the (first) reference as it was trained on, "" when the recipe states none."""
        recipe = {name: self.key(name) for name in ("caption", "caption_prefix", "trigger")}
        return next(iter(captions.of_run(recipe, {"captions": self.key("captions")})), "")

    @property
    def title(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name


def read_run(folder: Path | str) -> Run:
    """Read a style folder. UserError when it is missing or holds no recipe.toml."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no style folder at {folder}: give the --out folder of `impasto train`")
    try:
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
        recipe = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a style folder (no recipe.toml): give the --out of `impasto train`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'recipe.toml'} cannot be read: {error}") from None
    card, reference = folder / "README.md", folder / "reference.png"
    return Run(
        folder,
        text,
        recipe,
        read_metrics(folder / "metrics.jsonl"),
        card.read_text(encoding="utf-8") if card.is_file() else "",
        reference if reference.is_file() else None,
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows with a finite loss, in order of steps; a half-written line, as a killed run leaves it, is passed over."""
    if not path.is_file():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and math.isfinite(row.get("loss", math.nan)):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def law_of(run: Run) -> Law | None:
    """The noise law that the resolved recipe names, None when it names none."""
    if run.key("noise") is None:
        return None
    return laws.of({key: run.key(key) for key in ("noise", *(f"noise_{name}" for name in laws.PARAMETERS))})


@dataclass(frozen=True)
class Gallery:
    """A named set of generated images: `scores` is its scores.json, {} when it was not evaluated."""

    name: str
    samples: list[Sample]
    scores: dict[str, Any]

    def row(self, index: int) -> dict[str, Any]:
        """What the judges said of image `index`, {} when they were not asked."""
        rows = {row["file"]: row for row in self.scores.get("images", [])}
        return rows.get(self.samples[index].path.name, {})


def read_gallery(name: str, folder: Path | str) -> Gallery:
    """The images of a folder and its scores. UserError when it has no images or its scores cannot be read."""
    return Gallery(name, read_folder(folder), read_json(Path(folder) / "scores.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} when there is no such file. UserError when it is not one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: write it again with `impasto evaluate`")
    return value


def generated_folder(run: Run) -> Path:
    """Where a run's images lie by default: `images/` in it, else its previews. UserError when there are neither."""
    for name in ("images", "previews"):
        if any((run.folder / name).glob("*.png")):
            return run.folder / name
    command = ["impasto", "generate", "--base", str(run.key("base") or "mini-sd3"), "--style", str(run.folder)]
    command += ["--prompt", run.caption or "a cat", "--out", str(run.folder / "images")]
    raise UserError(f"{run.folder} has no images yet: `{shlex.join(command)}` first")
