"""`make demo`: one image of a style that the base never saw, three methods at equal text, and what the judges say.

    slice -> reference.png -> train x 2 -> 24 images per method and strength, and of the base -> scores, grid, report

The methods: the base's own recipe with its sampling defaults (style guidance); the same adapter as plain diffusers
samples it; SD3's sampler. More style is easily had at the cost of text, so each is drawn along its strength curve, and
they are compared where they have the same concept top-5. The same command again reuses what is there, as long as base,
reference and settings are the same.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
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
from impasto.evaluate import evaluate, load_encoder, scores_table
from impasto.evaluate.samples import open_image, read_folder
from impasto.evaluate.truth import true_pictures
from impasto.families.base import quiet
from impasto.files import atomic, json_of
from impasto.generation import generate_folder
from impasto.judges.model import Judges
from impasto.report import report
from impasto.sampling.config import GenerateConfig
from impasto.training.train import train

BASELINE = "sd3-sampler"
"""The recipe that the base's own is compared with."""
# What shows best: anyone can see this style take. The concept judge names only half of its *true* pictures, so what
# stays of the content is also stated as a share of theirs. The other styles: docs/results/demo.md.
STYLE = "unifont"
REFERENCES = {"unifont": "rabbit face", "streamline-emojis": "pig face"}
TABLE = ("style_accuracy", "kind_accuracy", "style_probability", "concept_top1", "concept_top5", "leakage", "clip_t")
GUIDED_STRENGTHS, PLAIN_STRENGTHS = (0.55,), (0.75,)
"""Of the curves, beside the one that is shown."""
COUNT = 24
RESULTS = ("scores.json", "strengths.json", "grid.png", "report.html")
Tick = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True)
class Method:
    """A trained recipe and how it is sampled. strength: the one that is shown. plain: as plain diffusers samples it,
    else with the style's defaults."""

    name: str
    recipe: str
    strength: float
    plain: bool

    def settings(self) -> dict[str, Any]:
        """What `generate` is told beside the strength."""
        return {"style_guidance": 0.0, "base_guidance": 0.0, "negative": ""} if self.plain else {}


@dataclass(frozen=True)
class Plan:
    """What the demo does: the reference, the prompts and the seed, equal for all methods and the base."""

    out: Path
    base: str
    style: int
    concept: int
    prompts_for: tuple[int, ...]  # concepts
    seed: int
    methods: tuple[Method, ...] = ()

    @property
    def words(self) -> str:
        """The style in words, the same in the caption and in every prompt."""
        return load_meta()["styles"][self.style]["descriptions"][0]

    @property
    def recipes(self) -> tuple[str, ...]:
        """What is trained."""
        return tuple(dict.fromkeys(method.recipe for method in self.methods))

    def prompt(self, concept: int) -> str:
        """ "{label}, {style words}"."""
        return f"{load_meta()['concepts'][concept]['label']}, {self.words}"

    def folder(self, method: Method | None, strength: float | None = None) -> Path:
        """Where the images of a method lie, at the strength that is shown or another; None: those of the base."""
        if method is None:
            return self.out / "base" / "images"
        if strength in (None, method.strength) and not method.plain:
            return self.out / method.recipe / "images"
        kind = "plain" if method.plain else "guided"
        return self.out / method.recipe / f"{kind}-{method.strength if strength is None else strength:g}"


def methods(base: str, also: Sequence[str] = ()) -> tuple[Method, ...]:
    """The three, and further recipes with the sampling defaults of their styles."""
    own, card = default_recipe(base), cards.card(base)
    found = [Method("default", own, of_card(card, own).strength, plain=False), Method("plain", own, 1.0, plain=True)]
    found.append(Method(BASELINE, BASELINE, 1.0, plain=True))
    more = [name for name in dict.fromkeys(also) if name not in (own, BASELINE)]
    return (*found, *(Method(name, name, of_card(card, name).strength, plain=False) for name in more))


def demo(
    out: Path | str = "runs/demo",
    style: str = STYLE,
    concept: str | None = None,
    base: str = "mini-sd3",
    seed: int = 0,
    steps: int | None = None,
    strengths: Sequence[float] | None = None,
    count: int | None = None,
    judges: Judges | None = None,
    encoder: Any = "clip",
    console: Console | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the demo into `out` and return what scores.json holds: {method: scores, "base", "true", "about"}.

    style: a held-out style of the packaged slice. concept: label of the reference's object (a reference concept).
    steps: training steps of every recipe; default the base's own. strengths: of the curves, beside the one that is
    shown; default GUIDED_STRENGTHS and PLAIN_STRENGTHS. count: evaluation concepts, see `make_plan`. judges, encoder:
    default the packaged ones. also: further recipes of the package.
    UserError when style or concept is not in the slice, a recipe is unknown, or `out` holds something that is no demo.
    """
    console = console or Console()
    started = time.perf_counter()
    if unknown := [name for name in also if name not in recipes()]:
        raise UserError(f"unknown recipe {unknown[0]!r}; {nearest(unknown[0], list(recipes()))}")
    plan = make_plan(Path(out), style, concept, base, seed, count)
    plan = replace(plan, methods=methods(base, also))
    configs = {name: config_of(plan, name, steps) for name in plan.recipes}
    prepare_folder(plan, configs)
    judges = judges if judges is not None else Judges.load()
    with quiet():
        encoder = load_encoder() if encoder == "clip" else encoder
    scores: dict[tuple[Method | None, float], dict[str, Any]] = {}
    with quiet(), stages(console) as stage:
        for name, config in configs.items():
            train_once(config, stage(f"train {name}", config.optim.steps))
        for method, strength in points(plan, strengths):
            title = "base" if method is None else f"{method.name}:{strength:g}"
            draw(plan, method, strength, stage(f"generate {title}", len(plan.prompts_for)))
            scores[method, strength] = score(plan, method, strength, judges, encoder)
    base_scores = scores[None, 0.0]
    results = {method.name: brief(scores[method, method.strength]) for method in plan.methods}
    results |= {"base": brief(base_scores), "true": base_scores["true"]}
    sweep: dict[str, Any] = {
        method.name: [{"strength": s, **brief(one)} for (m, s), one in scores.items() if m == method]
        for method in plan.methods
    }
    results["about"] = about(plan, configs) | {"equal_text": equal_text(results, sweep)}
    results["about"]["sentences"] = sentences(plan, results)
    results["about"]["seconds"] = round(time.perf_counter() - started, 1)
    write_json(plan.out / "strengths.json", sweep | {"base": results["base"], "true": results["true"]})
    write_json(plan.out / "scores.json", results)
    with atomic(plan.out / "grid.png") as file:
        grid(plan).save(file, "PNG")
    page(plan, results["about"]["sentences"])
    show(console, plan, results)
    return results


def points(plan: Plan, strengths: Sequence[float] | None) -> list[tuple[Method | None, float]]:
    """What is generated: the base, and each method at its strengths in order."""
    found: list[tuple[Method | None, float]] = [(None, 0.0)]
    for method in plan.methods:
        beside = (PLAIN_STRENGTHS if method.plain else GUIDED_STRENGTHS) if strengths is None else strengths
        found += [(method, s) for s in sorted({*beside, method.strength})]
    return found


def equal_text(results: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, Any]:
    """{"concept_top5": of the default, "style": {method: its style accuracy where it has that concept top-5}}.

    A method's curve goes from the base (strength 0) through its strengths, straight between them; the most style of the
    places where it has at least that much text counts. None where it never has.
    """
    level, base = results["default"]["concept_top5"], results["base"]
    style = {}
    for name, rows in sweep.items():
        curve = [(row["concept_top5"], row["style_accuracy"]) for row in (base, *rows)]
        style[name] = style_at(curve, level)
    return {"concept_top5": level, "style": style}


def style_at(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The most style on a curve of (text, style), straight between its points, where text is `level` or more."""
    found = [style for text, style in curve if text >= level]
    for (text_a, style_a), (text_b, style_b) in pairwise(curve):
        if min(text_a, text_b) < level < max(text_a, text_b):
            found.append(style_a + (style_b - style_a) * (level - text_a) / (text_b - text_a))
    return max(found, default=None)


def sentences(plan: Plan, results: Mapping[str, Any]) -> list[str]:
    """What is seen, in two sentences with the numbers."""
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
    """.62, or a dash where it is not known."""
    return "–" if value is None else f"{value:.2f}"


def make_plan(out: Path, style: str, concept: str | None, base: str, seed: int, count: int | None) -> Plan:
    """The concepts are the slice's evaluation concepts in this style, `count` of them at equal distances; COUNT, or all
    where there are fewer, by default."""
    meta, style_id = load_meta(), style_index(style)
    if style_id not in meta["split"]["heldout_styles"]:
        known = ", ".join(meta["style_names"][i] for i in meta["split"]["heldout_styles"])
        raise UserError(f"the base knows the style {style!r}: the demo needs one that it never saw: {known}")
    drawn = set(load_slice(styles=[style_id]).concept_id.tolist())
    references = [i for i in meta["split"]["reference_concepts"] if i in drawn]
    label = concept or REFERENCES.get(style)
    chosen = concept_index(label) if label else references[0]
    if chosen not in references:
        known = ", ".join(meta["concepts"][i]["label"] for i in references)
        raise UserError(f"no reference picture of {label!r} in {style}; there are: {known}")
    asked = [i for i in meta["split"]["evaluation_concepts"] if i in drawn]
    count = min(COUNT, len(asked)) if count is None else count
    if not 1 <= count <= len(asked):
        raise UserError(f"count must be 1 to {len(asked)} for {style}, not {count}")
    spread = tuple(asked[i * len(asked) // count] for i in range(count))
    return Plan(out, base, style_id, chosen, spread, seed)


def config_of(plan: Plan, recipe: str, steps: int | None) -> TrainConfig:
    """The resolved recipe; only the recipe's own keys differ between the runs."""
    given: dict[str, Any] = {
        "image": (plan.out / "reference.png",),
        "caption": (plan.prompt(plan.concept),),
        "out": plan.out / recipe,
        "seed": plan.seed,
        "preview": False,
        "tensorboard": False,
    }
    return resolve(recipe, plan.base, **given, **({} if steps is None else {"steps": steps}))


def prepare_folder(plan: Plan, configs: dict[str, TrainConfig]) -> None:
    """Write reference.png and demo.json. Results of other settings are cleared first: all of them where base, seed or
    prompts are others, else the runs of recipes whose own settings are."""
    mark = plan.out / "demo.json"
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"{plan.out} is a file: give a folder for the demo")
    if plan.out.is_dir() and any(plan.out.iterdir()) and not mark.is_file():
        raise UserError(f"{plan.out} is not empty and holds no demo: give another folder")
    same = {"base": loader.load(plan.base).hash, "seed": plan.seed, "prompts": [*map(plan.prompt, plan.prompts_for)]}
    runs = {name: marked(config) for name, config in configs.items()}
    card = cards.card(plan.base)
    sampled = {name: asdict(of_card(card, name)) for name in runs}
    before = json_of(mark)
    known = before.get("runs", {}) if {key: before.get(key) for key in same} == same else {}
    stale = [name for name in runs if runs[name] != known.get(name, runs[name])] if known else ["base", *recipes()]
    for name in stale:
        shutil.rmtree(plan.out / name, ignore_errors=True)
    earlier = before.get("sampling", {})
    for name in runs:
        if earlier.get(name, sampled[name]) != sampled[name]:  # trained the same, sampled otherwise
            for folder in ((plan.out / name) / "images", *(plan.out / name).glob("guided-*")):
                shutil.rmtree(folder, ignore_errors=True)
    settings = same | {"runs": known | runs, "sampling": earlier | sampled}
    if settings != before:
        for name in RESULTS:
            (plan.out / name).unlink(missing_ok=True)
    picture = true_pictures(plan.style, [plan.concept])[plan.concept]
    with atomic(plan.out / "reference.png") as path:
        picture.save(path)
    write_json(mark, settings)


def marked(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run that make its weights: all but how its folder is spelled."""
    return {key: value for key, value in flatten(config).items() if key not in ("image", "out")}


def train_once(config: TrainConfig, tick: Tick) -> None:
    """Train, or go on; `train` itself knows what is complete."""
    train(config, lambda step, loss: tick(step, config.optim.steps))
    tick(config.optim.steps, config.optim.steps)


def draw(plan: Plan, method: Method | None, strength: float, tick: Tick) -> None:
    """The images of a method or of the base (None), as `impasto generate` makes them; nothing when all are there."""
    folder = plan.folder(method, strength)
    styles = () if method is None else (f"{plan.out / method.recipe}:{strength:g}",)
    prompts = [plan.prompt(concept) for concept in plan.prompts_for]
    if folder.is_dir() and drawn(folder) == prompts:
        return tick(len(prompts), len(prompts))
    shutil.rmtree(folder, ignore_errors=True)
    settings = GenerateConfig(
        base=plan.base,
        prompt=tuple(prompts),
        style=styles,
        seed=plan.seed,
        out=folder,
        **({} if method is None else method.settings()),
    )
    generate_folder(settings, tick)
    return None


def drawn(folder: Path) -> list[str | None]:
    """Prompts of the pictures in a folder, [] when one of them cannot be read."""
    try:
        return [sample.prompt for sample in read_folder(folder)]
    except UserError:
        return []


def score(plan: Plan, method: Method | None, strength: float, judges: Judges, encoder: Any) -> dict[str, Any]:
    """`impasto evaluate`; the methods at the strength that is shown beside the base's images."""
    meta = load_meta()
    return evaluate(
        plan.folder(method, strength),
        meta["style_names"][plan.style],
        reference=plan.out / "reference.png",
        reference_concept=meta["concepts"][plan.concept]["label"],
        base_images=plan.folder(None) if method is not None and strength == method.strength else None,
        judges=judges,
        encoder=encoder,
    )


def brief(scores: dict[str, Any]) -> dict[str, Any]:
    """The means with their spread, without the rows of single images."""
    return {key: value for key, value in scores.items() if key not in ("images", "true", "base", "notes", "folder")}


def about(plan: Plan, configs: dict[str, TrainConfig]) -> dict[str, Any]:
    """What was run."""
    meta = load_meta()
    return {
        "base": plan.base,
        "style": meta["style_names"][plan.style],
        "reference": meta["concepts"][plan.concept]["label"],
        "caption": plan.prompt(plan.concept),
        "concepts": [meta["concepts"][i]["label"] for i in plan.prompts_for],
        "steps": {name: config.optim.steps for name, config in configs.items()},
        "methods": {
            method.name: {"recipe": method.recipe, "strength": method.strength}
            | {key: value for key, value in sampled.items() if key in ("style_guidance", "base_guidance", "negative")}
            for method in plan.methods
            for sampled in [asdict(PLAIN if method.plain else of_card(cards.card(plan.base), method.recipe))]
        },
        "seed": plan.seed,
    }


def grid(plan: Plan) -> Image.Image:
    """The reference, then true images, base and the methods, a column per concept."""
    truths = true_pictures(plan.style, plan.prompts_for)
    labels = [load_meta()["concepts"][i]["label"] for i in plan.prompts_for]
    rows: dict[str, list[Image.Image | None]] = {"true": [truths.get(i) for i in plan.prompts_for]}
    for method in (None, *(one for one in reversed(plan.methods))):
        name = "base" if method is None else method.name
        rows[name] = [sample.image for sample in read_folder(plan.folder(method))]
    title = f"one reference: {plan.prompt(plan.concept)}"
    return sheet(rows, labels, title=title, reference=open_image(plan.out / "reference.png")[0])


def page(plan: Plan, notes: Sequence[str]) -> None:
    """runs/demo/report.html."""
    first, *others = plan.methods
    report(
        plan.out / first.recipe,
        beside={one.name: plan.folder(one) for one in others} | {"base": plan.folder(None)},
        strengths=plan.out / "strengths.json",
        title=f"One picture of {load_meta()['style_names'][plan.style]}",
        out=plan.out / "report.html",
        notes=notes,
        name=first.name,
    )


def show(console: Console, plan: Plan, results: dict[str, Any]) -> None:
    """The table on the terminal, the two sentences, and where to look."""
    title = f"{results['about']['style']} from one {results['about']['reference']}, mean [95 %]"
    order = ("base", *(method.name for method in reversed(plan.methods)), "true")
    console.print(scores_table({key: results[key] for key in order}, title, TABLE))
    for sentence in results["about"]["sentences"]:
        console.print(sentence)
    console.print(f"{plan.out / 'report.html'}  {plan.out / 'grid.png'}  ({results['about']['seconds']:.0f} s)")


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int], Tick]]:
    """`stage(title, total)` opens a bar and returns what moves it."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:

        def stage(title: str, total: int) -> Tick:
            task = bars.add_task(title, total=total)
            return lambda done, of: bars.update(task, completed=done, total=of)

        yield stage


def as_json(value: Any) -> str:
    """The one way in which the demo writes JSON."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    with atomic(path) as temporary:
        temporary.write_text(as_json(value), encoding="utf-8")
