"""`make demo`: one image of a style that the base was not trained on, three methods at equal text, scored by judges.

    slice -> reference.png -> train x 2 -> 24 images per method and strength, and of the base -> scores, grid, report

The methods: the base's recipe with its sampling defaults (style guidance); the same adapter in plain diffusers; SD3's
sampler. Since style can be traded for text, each method is sampled at several strengths, and methods are compared at
equal concept top-5. The same command reuses existing results if base, reference and settings are unchanged.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from impasto.artworld import concept_index, load_meta, load_slice, style_index
from impasto.bases import cards, loader
from impasto.bases.style_defaults import PLAIN, of_card
from impasto.config import TrainConfig, default_recipe, flatten, recipes, resolve
from impasto.contact_sheet import sheet
from impasto.errors import UserError, nearest
from impasto.evaluation import evaluate, load_encoder, scores_table
from impasto.evaluation.equal_text import style_at_text
from impasto.evaluation.samples import open_image, read_folder
from impasto.evaluation.truth import true_pictures
from impasto.families.base import quiet
from impasto.files import atomic, read_json_or_empty
from impasto.generation import generate_folder
from impasto.judges.model import Judges
from impasto.report import report
from impasto.report.html import Html, el
from impasto.sampling.config import GenerateConfig
from impasto.training.train import train

BASELINE = "sd3-sampler"
"""The recipe that the base's own is compared with."""
# A style whose transfer is easy to see. The concept judge recognises only half of its *true* images, so content is also
# stated as a share of theirs. Other styles: docs/results/demo.md.
BASE, STYLE = "mini-sd15", "streamline-emojis"
REFERENCES = {"unifont": "rabbit face", "streamline-emojis": "pig face"}
TABLE = ("style_accuracy", "kind_accuracy", "style_probability", "concept_top1", "concept_top5", "leakage", "clip_t")
GUIDED_STRENGTHS, PLAIN_STRENGTHS = (0.55,), (0.75,)
"""Strengths of the curves, beside the method's own."""
COUNT = 24
COMPARISON = "docs/results/compare/README.md"
"""The page of all methods on the embedded bases."""
RESULTS = ("scores.json", "strengths.json", "grid.png", "report.html")
Tick = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True)
class Method:
    """A trained recipe and its sampling. strength: the reported one. plain: as in plain diffusers, else with the
    style's defaults."""

    name: str
    recipe: str
    strength: float
    plain: bool

    def settings(self) -> dict[str, Any]:
        """Settings of `generate` beside the strength."""
        return {"style_guidance": 0.0, "base_guidance": 0.0, "negative": ""} if self.plain else {}


@dataclass(frozen=True)
class DemoSpec:
    """Reference, prompts and seed of the demo, equal for all methods and the base."""

    out: Path
    base: str
    style: int
    concept: int
    prompts_for: tuple[int, ...]  # concepts
    seed: int
    methods: tuple[Method, ...] = ()

    @property
    def words(self) -> str:
        """The style's description in caption and prompts."""
        return load_meta()["styles"][self.style]["descriptions"][0]

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes to train."""
        return tuple(dict.fromkeys(method.recipe for method in self.methods))

    def prompt(self, concept: int) -> str:
        """ "{label}, {style words}"."""
        return f"{load_meta()['concepts'][concept]['label']}, {self.words}"

    def folder(self, method: Method | None, strength: float | None = None) -> Path:
        """The image folder of a method at a strength, by default its own; of the base if method is None."""
        if method is None:
            return self.out / "base" / "images"
        if strength in (None, method.strength) and not method.plain:
            return self.out / method.recipe / "images"
        kind = "plain" if method.plain else "guided"
        return self.out / method.recipe / f"{kind}-{method.strength if strength is None else strength:g}"


def methods(base: str, also: Sequence[str] = ()) -> tuple[Method, ...]:
    """The three methods, and further recipes with the sampling defaults of their styles."""
    own, card = default_recipe(base), cards.card(base)
    found = [Method("default", own, of_card(card, own).strength, plain=False), Method("plain", own, 1.0, plain=True)]
    found.append(Method(BASELINE, BASELINE, 1.0, plain=True))
    more = [name for name in dict.fromkeys(also) if name not in (own, BASELINE)]
    return (*found, *(Method(name, name, of_card(card, name).strength, plain=False) for name in more))


def demo(
    out: Path | str = "runs/demo",
    style: str = STYLE,
    concept: str | None = None,
    base: str = BASE,
    seed: int = 0,
    steps: int | None = None,
    strengths: Sequence[float] | None = None,
    count: int | None = None,
    judges: Judges | None = None,
    encoder: Any = "clip",
    console: Console | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the demo into `out` and return the content of scores.json: {method: scores, "base", "true", "about"}.

    style: a held-out style of the packaged slice. concept: label of the reference's object (a reference concept).
    steps: training steps of every recipe; default the base's. strengths: of the curves, beside the methods' own;
    default GUIDED_STRENGTHS and PLAIN_STRENGTHS. count: evaluation concepts, see `make_plan`. judges, encoder: default
    the packaged ones. also: further recipes of the package.
    Raises UserError when style or concept is not in the slice, a recipe is unknown, or `out` is not a demo's folder.
    """
    console = console or Console()
    started = time.perf_counter()
    if unknown := [name for name in also if name not in recipes()]:
        raise UserError(f"unknown recipe {unknown[0]!r}; {nearest(unknown[0], list(recipes()))}")
    spec = make_plan(Path(out), style, concept, base, seed, count)
    spec = replace(spec, methods=methods(base, also))
    configs = {name: config_of(spec, name, steps) for name in spec.recipes}
    prepare_folder(spec, configs)
    judges = judges if judges is not None else Judges.load()
    with quiet():
        encoder = load_encoder() if encoder == "clip" else encoder
    scores: dict[tuple[Method | None, float], dict[str, Any]] = {}
    with quiet(), stages(console) as stage:
        for name, config in configs.items():
            train_once(config, stage(f"train {name}", config.optim.steps))
        for method, strength in sweep_points(spec, strengths):
            title = "base" if method is None else f"{method.name}:{strength:g}"
            generate_images(spec, method, strength, stage(f"generate {title}", len(spec.prompts_for)))
            scores[method, strength] = score(spec, method, strength, judges, encoder)
    base_scores = scores[None, 0.0]
    results = {method.name: without_rows(scores[method, method.strength]) for method in spec.methods}
    results |= {"base": without_rows(base_scores), "true": base_scores["true"]}
    sweep: dict[str, Any] = {
        method.name: [{"strength": s, **without_rows(one)} for (m, s), one in scores.items() if m == method]
        for method in spec.methods
    }
    results["about"] = describe_run(spec, configs) | {"equal_text": equal_text(results, sweep)}
    results["about"]["sentences"] = sentences(spec, results)
    results["about"]["seconds"] = round(time.perf_counter() - started, 1)
    write_json(spec.out / "strengths.json", sweep | {"base": results["base"], "true": results["true"]})
    write_json(spec.out / "scores.json", results)
    with atomic(spec.out / "grid.png") as file:
        grid(spec).save(file, "PNG")
    write_report(spec, results["about"]["sentences"])
    print_results(console, spec, results)
    return results


def sweep_points(spec: DemoSpec, strengths: Sequence[float] | None) -> list[tuple[Method | None, float]]:
    """(method, strength) of all images to generate: the base, and each method at its strengths in order."""
    found: list[tuple[Method | None, float]] = [(None, 0.0)]
    for method in spec.methods:
        beside = (PLAIN_STRENGTHS if method.plain else GUIDED_STRENGTHS) if strengths is None else strengths
        found += [(method, s) for s in sorted({*beside, method.strength})]
    return found


def equal_text(results: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, Any]:
    """{"concept_top5": of the default, "style": {method: style accuracy at that concept top-5}}.

    A method's curve is linear between the base (strength 0) and its strengths; the largest style accuracy with at least
    that concept top-5 is used, None if there is none.
    """
    level, base = results["default"]["concept_top5"], results["base"]
    style = {}
    for name, rows in sweep.items():
        curve = [(row["concept_top5"], row["style_accuracy"]) for row in (base, *rows)]
        style[name] = style_at(curve, level)
    return {"concept_top5": level, "style": style}


def style_at(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The largest style on a piecewise linear curve of (text, style) where text is at least `level`."""
    found = style_at_text(curve, level)
    return None if found is None else found.style


def sentences(spec: DemoSpec, results: Mapping[str, Any]) -> list[str]:
    """The results in two sentences."""
    at, base = results["about"]["equal_text"], results["base"]
    named = {"plain": "the same adapter without style guidance"}
    others = [f"{named.get(n, n)} {share(style)}" for n, style in at["style"].items() if n != "default"]
    plain, own = results["plain"], share(at["style"]["default"])
    return [
        f"At equal text ({share(at['concept_top5'])} of the things found) the default has {own} of the style, "
        f"{', '.join(others)}.",
        f"At strength 1 without style guidance, as plain diffusers samples it, the style is at "
        f"{share(plain['style_accuracy'])} and {share(plain['concept_top5'])} of the things are found; the base alone "
        f"has {share(base['style_accuracy'])} and {share(base['concept_top5'])}.",
    ]


def share(value: float | None) -> str:
    """.62, or a dash if unknown."""
    return "–" if value is None else f"{value:.2f}"


def make_plan(out: Path, style: str, concept: str | None, base: str, seed: int, count: int | None) -> DemoSpec:
    """The spec with `count` evenly spaced evaluation concepts of the slice in this style; default COUNT, or all if
    there are fewer."""
    meta, style_id = load_meta(), style_index(style)
    if style_id not in meta["split"]["heldout_styles"]:
        known = ", ".join(meta["style_names"][i] for i in meta["split"]["heldout_styles"])
        raise UserError(f"the base was trained on the style {style!r}: choose one that it was not trained on: {known}")
    saved_prompts = set(load_slice(styles=[style_id]).concept_id.tolist())
    references = [i for i in meta["split"]["reference_concepts"] if i in saved_prompts]
    label = concept or REFERENCES.get(style)
    chosen = concept_index(label) if label else references[0]
    if chosen not in references:
        known = ", ".join(meta["concepts"][i]["label"] for i in references)
        raise UserError(f"no reference image of {label!r} in {style}; there are: {known}")
    asked = [i for i in meta["split"]["evaluation_concepts"] if i in saved_prompts]
    count = min(COUNT, len(asked)) if count is None else count
    if not 1 <= count <= len(asked):
        raise UserError(f"count must be 1 to {len(asked)} for {style}, not {count}")
    spread = tuple(asked[i * len(asked) // count] for i in range(count))
    return DemoSpec(out, base, style_id, chosen, spread, seed)


def config_of(spec: DemoSpec, recipe: str, steps: int | None) -> TrainConfig:
    """The resolved recipe; the runs differ only in the recipe's keys."""
    given: dict[str, Any] = {
        "image": (spec.out / "reference.png",),
        "caption": (spec.prompt(spec.concept),),
        "out": spec.out / recipe,
        "seed": spec.seed,
        "preview": False,
        "tensorboard": False,
    }
    return resolve(recipe, spec.base, **given, **({} if steps is None else {"steps": steps}))


def prepare_folder(spec: DemoSpec, configs: dict[str, TrainConfig]) -> None:
    """Write reference.png and demo.json. Results of other settings are removed first: all of them if base, seed or
    prompts differ, else the runs of recipes whose settings differ."""
    mark = spec.out / "demo.json"
    if spec.out.exists() and not spec.out.is_dir():
        raise UserError(f"{spec.out} is a file: give a folder for the demo")
    if spec.out.is_dir() and any(spec.out.iterdir()) and not mark.is_file():
        raise UserError(f"{spec.out} is not empty and not a demo: give another folder")
    same = {"base": loader.load(spec.base).hash, "seed": spec.seed, "prompts": [*map(spec.prompt, spec.prompts_for)]}
    runs = {name: weight_settings(config) for name, config in configs.items()}
    card = cards.card(spec.base)
    sampled = {name: asdict(of_card(card, name)) for name in runs}
    before = read_json_or_empty(mark)
    known = before.get("runs", {}) if {key: before.get(key) for key in same} == same else {}
    stale = [name for name in runs if runs[name] != known.get(name, runs[name])] if known else ["base", *recipes()]
    for name in stale:
        shutil.rmtree(spec.out / name, ignore_errors=True)
    earlier = before.get("sampling", {})
    for name in runs:
        if earlier.get(name, sampled[name]) != sampled[name]:  # same weights, other sampling
            for folder in ((spec.out / name) / "images", *(spec.out / name).glob("guided-*")):
                shutil.rmtree(folder, ignore_errors=True)
    settings = same | {"runs": known | runs, "sampling": earlier | sampled}
    if settings != before:
        for name in RESULTS:
            (spec.out / name).unlink(missing_ok=True)
    picture = true_pictures(spec.style, [spec.concept])[spec.concept]
    with atomic(spec.out / "reference.png") as path:
        picture.save(path)
    write_json(mark, settings)


def weight_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that determine a run's weights: all but paths."""
    return {key: value for key, value in flatten(config).items() if key not in ("image", "out")}


def train_once(config: TrainConfig, tick: Tick) -> None:
    """Train or resume; does nothing if the run is complete."""

    def count(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        if phase == "training":
            tick(done, config.optim.steps)

    train(config, count)
    tick(config.optim.steps, config.optim.steps)


def generate_images(spec: DemoSpec, method: Method | None, strength: float, tick: Tick) -> None:
    """Generate the images of a method or of the base (None), unless they exist."""
    folder = spec.folder(method, strength)
    styles = () if method is None else (f"{spec.out / method.recipe}:{strength:g}",)
    prompts = [spec.prompt(concept) for concept in spec.prompts_for]
    if folder.is_dir() and saved_prompts(folder) == prompts:
        return tick(len(prompts), len(prompts))
    shutil.rmtree(folder, ignore_errors=True)
    settings = GenerateConfig(
        replace=True,
        base=spec.base,
        prompt=tuple(prompts),
        style=styles,
        seed=spec.seed,
        out=folder,
        **({} if method is None else method.settings()),
    )
    generate_folder(settings, lambda phase, done=0, total=None, note="": tick(done, total or len(prompts)))
    return None


def saved_prompts(folder: Path) -> list[str | None]:
    """Prompts of the images in a folder, [] if one of them cannot be read."""
    try:
        return [sample.prompt for sample in read_folder(folder)]
    except UserError:
        return []


def score(spec: DemoSpec, method: Method | None, strength: float, judges: Judges, encoder: Any) -> dict[str, Any]:
    """`impasto evaluate`; methods at their own strength are scored beside the base's images."""
    meta = load_meta()
    return evaluate(
        spec.folder(method, strength),
        meta["style_names"][spec.style],
        reference=spec.out / "reference.png",
        reference_concept=meta["concepts"][spec.concept]["label"],
        base_images=spec.folder(None) if method is not None and strength == method.strength else None,
        judges=judges,
        encoder=encoder,
    )


def without_rows(scores: dict[str, Any]) -> dict[str, Any]:
    """The means with intervals, without rows of single images, notes and nested scores."""
    return {key: value for key, value in scores.items() if key not in ("images", "true", "base", "notes", "folder")}


def describe_run(spec: DemoSpec, configs: dict[str, TrainConfig]) -> dict[str, Any]:
    """The settings of the demo, for scores.json."""
    meta = load_meta()
    return {
        "base": spec.base,
        "style": meta["style_names"][spec.style],
        "reference": meta["concepts"][spec.concept]["label"],
        "caption": spec.prompt(spec.concept),
        "concepts": [meta["concepts"][i]["label"] for i in spec.prompts_for],
        "steps": {name: config.optim.steps for name, config in configs.items()},
        "methods": {
            method.name: {"recipe": method.recipe, "strength": method.strength}
            | {key: value for key, value in sampled.items() if key in ("style_guidance", "base_guidance", "negative")}
            for method in spec.methods
            for sampled in [asdict(PLAIN if method.plain else of_card(cards.card(spec.base), method.recipe))]
        },
        "seed": spec.seed,
    }


def grid(spec: DemoSpec) -> Image.Image:
    """The contact sheet: reference; rows of true images, base and methods, a column per concept."""
    truths = true_pictures(spec.style, spec.prompts_for)
    labels = [load_meta()["concepts"][i]["label"] for i in spec.prompts_for]
    rows: dict[str, list[Image.Image | None]] = {"true": [truths.get(i) for i in spec.prompts_for]}
    for method in (None, *(one for one in reversed(spec.methods))):
        name = "base" if method is None else method.name
        rows[name] = [sample.image for sample in read_folder(spec.folder(method))]
    title = f"one reference: {spec.prompt(spec.concept)}"
    return sheet(rows, labels, title=title, reference=open_image(spec.out / "reference.png")[0])


def write_report(spec: DemoSpec, notes: Sequence[str]) -> None:
    """Write `report.html`."""
    first, *others = spec.methods
    report(
        spec.out / first.recipe,
        beside={one.name: spec.folder(one) for one in others} | {"base": spec.folder(None)},
        strengths=spec.out / "strengths.json",
        title=f"One picture of {load_meta()['style_names'][spec.style]}",
        out=spec.out / "report.html",
        notes=[*notes, comparison_note()],
        name=first.name,
    )


def comparison_note() -> Html:
    """Where all methods are compared: a link where the package knows its repository, else the file there."""
    known = dict(line.split(", ", 1) for line in metadata("impasto").get_all("Project-URL") or ())
    page = f"{known['Repository']}/blob/main/{COMPARISON}" if "Repository" in known else None
    place = el("a", "the comparison", href=page) if page else f"the comparison ({COMPARISON})"
    return Html(f"All methods beside each other, on this base and others: {place}; on your own image: impasto compare.")


def print_results(console: Console, spec: DemoSpec, results: dict[str, Any]) -> None:
    """Print the score table, the two sentences, and the output files."""
    title = f"{results['about']['style']} from one {results['about']['reference']}, mean [95 %]"
    order = ("base", *(method.name for method in reversed(spec.methods)), "true")
    console.print(scores_table({key: results[key] for key in order}, title, TABLE))
    for sentence in results["about"]["sentences"]:
        console.print(sentence)
    console.print(f"{spec.out / 'report.html'}  {spec.out / 'grid.png'}  ({results['about']['seconds']:.0f} s)")


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int], Tick]]:
    """Yield `stage(title, total)`, which adds a progress bar and returns its update function."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:

        def stage(title: str, total: int) -> Tick:
            task = bars.add_task(title, total=total)
            return lambda done, of: bars.update(task, completed=done, total=of)

        yield stage


def as_json(value: Any) -> str:
    """JSON as the demo writes it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(as_json(value), encoding="utf-8")
