"""The inputs of a report: a style folder (recipe, metrics, card, reference) and image folders with scores."""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from impasto.bases import cards, hub, loader
from impasto.config import read_recipe_file
from impasto.data import captions
from impasto.errors import UserError
from impasto.evaluation.samples import Sample, read_folder
from impasto.evaluation.scores import SCORES
from impasto.generation import generate_command
from impasto.noise import laws
from impasto.noise.laws import Law
from impasto.noise.schedule import Schedule
from impasto.styles.metadata import About, read_about
from impasto.styles.parts import has_weights
from impasto.training.watch import read_rows


@dataclass(frozen=True)
class Run:
    """The content of a style folder. metrics: rows of metrics.jsonl in order of steps."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    card: str
    reference: Path | None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Rows of evaluations.jsonl, see `training.watch`."""

    def key(self, name: str) -> Any:
        """A key of the resolved recipe, at the top level or in one of its tables; None if missing."""
        tables = [self.recipe, *(value for value in self.recipe.values() if isinstance(value, dict))]
        return next((table[name] for table in tables if name in table), None)

    @property
    def caption(self) -> str:
        """The (first) reference's training caption, "" if the recipe has none."""
        recipe = {name: self.key(name) for name in ("caption", "caption_prefix", "trigger")}
        return next(iter(captions.of_run(recipe, {"captions": self.key("captions")})), "")

    @property
    def title(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name


def read_run(folder: Path | str) -> Run:
    """Read a style folder: of a run, or one that `resize`, `merge` or `import` wrote, which has no recipe.toml: then
    recipe_text is "", and the recipe is what the weights state. Raises UserError when there is none, recipe or card
    cannot be read, or a setting has a wrong type."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no style folder at {folder}: give the --out folder of `impasto train`")
    if not (folder / "recipe.toml").exists() and not has_weights(folder):
        raise UserError(
            f"{folder} is not a style folder (no recipe.toml, no weights): give the --out of `impasto train`"
        )
    try:
        if (folder / "recipe.toml").exists():
            text = (folder / "recipe.toml").read_text(encoding="utf-8")
            recipe, own = read_recipe_file(folder / "recipe.toml")
        else:
            text, recipe, own = "", stated(read_about(folder)), {}
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'recipe.toml'} cannot be read: {error}") from None
    card, reference = folder / "README.md", folder / "reference.png"
    try:
        card_text = card.read_text(encoding="utf-8") if card.is_file() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"{card} cannot be read: {error}; save it as UTF-8, or move it away") from None
    return Run(
        folder,
        text,
        recipe | {"impasto": own},
        read_metrics(folder / "metrics.jsonl"),
        card_text,
        reference if reference.is_file() else None,
        read_rows(folder),
    )


def stated(about: About) -> dict[str, Any]:
    """What the weights of a style without recipe.toml state, by the keys of a recipe."""
    found = {"base": about.base, "caption": about.captions, "rank": about.metadata.get("ss_network_dim")}
    return {key: value for key, value in found.items() if value}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows with a step and a finite loss, in order of steps; other lines, such as a truncated last one, are skipped."""
    if not path.is_file():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _valid_row(row):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _valid_row(row: dict[str, Any]) -> bool:
    """Whether a row has a step and a finite loss, and its noise levels, if any, are numbers (may be infinite)."""
    step, levels = row.get("step"), row.get("lam") or []
    numbers = isinstance(levels, list) and all(isinstance(lam, int | float) and lam == lam for lam in levels)
    return isinstance(step, int) and finite(step) and finite(row.get("loss")) and numbers


def finite(value: Any) -> bool:
    """Whether `value` is a number and finite as a float."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def law_of(run: Run) -> Law | None:
    """The noise law of the resolved recipe, truncated to its base's schedule.

    None without a law, and when the base is not available or its schedule does not fit the law.
    """
    if run.key("noise") is None:
        return None
    law = laws.law_from_recipe({key: run.key(key) for key in ("noise", *(f"noise_{name}" for name in laws.PARAMETERS))})
    try:
        schedule = schedule_of(str(run.key("base") or ""))
        return None if schedule is None else laws.truncate_to_schedule(law, schedule)
    except (UserError, ValueError):  # a damaged base, or not a valid id, such as "../x"
        return None


def schedule_of(base: str) -> Schedule | None:
    """The noise schedule of a base with a card or on disk (including the hub's cache), else None; nothing is
    downloaded. Raises UserError or ValueError for an invalid base."""
    from huggingface_hub import try_to_load_from_cache

    if base in cards.cards() or (base and Path(base).exists()):
        return loader.schedule(base)
    found = try_to_load_from_cache(base, "model_index.json") if hub.HUB_ID.fullmatch(base) else None
    return loader.schedule(str(Path(found).parent)) if isinstance(found, str) else None


@dataclass(frozen=True)
class Gallery:
    """A named set of generated images. scores: its scores.json, {} if it was not evaluated."""

    name: str
    folder: Path
    samples: list[Sample]
    scores: dict[str, Any]

    def row(self, index: int) -> dict[str, Any]:
        """The scores of image `index`, {} if there are none."""
        rows = {row["file"]: row for row in self.scores.get("images", [])}
        return rows.get(self.samples[index].path.name, {})


def read_gallery(name: str, folder: Path | str) -> Gallery:
    """The images and scores of a folder. Raises UserError when it has no images or its scores are damaged."""
    samples, file = read_folder(folder), Path(folder) / "scores.json"
    scores = read_json(file)
    if scores and not _valid_scores(scores):
        raise UserError(f"{file} is damaged, or another tool's: move it away, and write it with `impasto evaluate`")
    return Gallery(name, Path(folder), samples, scores)


def last_previews(previews: Gallery) -> Gallery:
    """The previews of the last step, "step-000150-0.png" on."""
    step = max(sample.path.stem.rpartition("-")[0] for sample in previews.samples)
    return replace(previews, samples=[one for one in previews.samples if one.path.stem.rpartition("-")[0] == step])


def read_strengths(path: Path) -> dict[str, Any]:
    """{run: [scores with "strength"], "base": scores, "true": scores}, {} without the file. Raises UserError when it is
    damaged."""
    sweep = read_json(path)
    rows = [row for curve in sweep.values() if isinstance(curve, list) for row in curve]
    points = [sweep[name] for name in ("base", "true") if isinstance(sweep.get(name), dict)]
    if not all(_valid_means(row) for row in rows + points) or not all(finite(row.get("strength")) for row in rows):
        raise UserError(f"{path} is damaged: move it away, or write it again with `impasto demo`")
    return sweep


def _valid_scores(scores: dict[str, Any]) -> bool:
    """Whether the entries used by the page have the form that `evaluate` writes."""
    parts = [scores, *(scores[name] for name in ("base", "true") if scores.get(name) is not None)]
    rows, notes = scores.get("images"), scores.get("notes", [])
    return (
        all(_valid_means(part) for part in parts)
        and _valid_encoders(scores.get("encoders") or {})
        and all(isinstance(scores.get(name), str | None) for name in ("style_of", "encoder", "dino"))
        and isinstance(notes, list)
        and all(isinstance(note, str) for note in notes)
        and isinstance(rows, list)
        and all(isinstance(row, dict) and isinstance(row.get("file"), str) for row in rows)
        and all(isinstance(row.get(name), str | None) for row in rows for name in ("concept", "style_judged"))
    )


def _valid_encoders(encoders: Any) -> bool:
    """Whether "encoders" has the form that `evaluate` writes."""
    if not isinstance(encoders, dict) or not all(isinstance(one, dict) for one in encoders.values()):
        return False
    parts = [part for one in encoders.values() for part in (one.get("scores"), one.get("base") or {})]
    return all(
        isinstance(one.get(name), str) for one in encoders.values() for name in ("source", "version", "about")
    ) and all(isinstance(part, dict) and all(map(_valid_mean, part.values())) for part in parts)


def _valid_mean(found: Any) -> bool:
    """{"mean", "interval"}, both None where unknown."""
    if not isinstance(found, dict) or "mean" not in found:
        return False
    span = found.get("interval")
    pair = span is None or (isinstance(span, list) and len(span) == 2 and all(map(finite, span)))
    return pair and (found["mean"] is None or finite(found["mean"])) and "interval" in found


def _valid_means(scores: Any) -> bool:
    """Whether `scores` holds finite means and intervals [low, high]."""
    if not isinstance(scores, dict) or not isinstance(scores.get("interval") or {}, dict):
        return False
    known = [scores[name] for name in SCORES if scores.get(name) is not None]
    spans = [span for name in SCORES if (span := (scores.get("interval") or {}).get(name))]
    pairs = all(isinstance(span, list) and len(span) == 2 and all(map(finite, span)) for span in spans)
    return pairs and all(map(finite, known))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, {} without the file. Raises UserError when it is not an object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: move it away, or write it again")
    return value


def generated_folder(run: Run) -> Path | None:
    """A style's folder of images: `images/`, else its previews. With neither None for a style that was not trained
    here; for a run UserError."""
    for name in ("images", "previews"):
        if any((run.folder / name).glob("*.png")):
            return run.folder / name
    if not run.recipe_text:
        return None
    raise UserError(f"{run.folder} has no images yet: `{first_command(run)}` first")


def first_command(run: Run) -> str:
    """The command that generates an image into the style folder."""
    base, out = str(run.key("base") or "mini-sd3"), str(run.folder / "images")
    return generate_command(base, str(run.folder), run.caption or "a cat", out)
