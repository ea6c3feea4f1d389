"""`make demo`: one picture of a style that the base never saw, two recipes with equal steps, and what the judges say.

    slice -> reference.png -> train x 2 -> 24 pictures each, and of the base -> scores, strengths, grid.png, report.html

The same command again reuses what is there, as long as base, reference and settings are the same.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from impasto import families
from impasto.artworld import concept_index, load_meta, load_slice, style_index
from impasto.artworld.judges import Judges
from impasto.config import GenerateConfig, TrainConfig, as_dict, check_ranges, recipes, resolve
from impasto.errors import UserError, nearest
from impasto.evaluate import evaluate, load_encoder, scores_table
from impasto.evaluate.samples import open_image, read_folder
from impasto.evaluate.truth import true_pictures
from impasto.families.base import quiet
from impasto.generate import generate_folder
from impasto.paths import atomic
from impasto.report import report
from impasto.sheet import sheet
from impasto.train import train

RECIPES = ("style-friendly", "sd3-sampler")
GUIDED = {"keep-content": 4.0}
"""Style guidance that a recipe's pictures are drawn with; chosen with its settings, see docs/keep-content.md."""
# What shows best: anyone can see this style take. The concept judge names only half of its *true* pictures, so what
# stays of the content is also stated as a share of theirs. The other styles: docs/results/demo.md.
STYLE = "unifont"
REFERENCES = {"unifont": "rabbit face", "streamline-emojis": "pig face"}
TABLE = ("style_accuracy", "kind_accuracy", "style_probability", "concept_top1", "concept_top5", "leakage", "clip_t")
STRENGTHS = (0.75, 1.0, 1.5)
COUNT = 24
RESULTS = ("scores.json", "strengths.json", "grid.png", "report.html")
Tick = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True)
class Plan:
    """What the demo does: the reference, the prompts and the seed; equal for all recipes and the base."""

    out: Path
    base: str
    style: int
    concept: int
    prompts_for: tuple[int, ...]  # concepts
    seed: int
    recipes: tuple[str, ...] = RECIPES

    @property
    def words(self) -> str:
        """The style in words, the same in the caption and in every prompt."""
        return load_meta()["styles"][self.style]["descriptions"][0]

    def prompt(self, concept: int) -> str:
        """ "{label}, {style words}"."""
        return f"{load_meta()['concepts'][concept]['label']}, {self.words}"

    def folder(self, name: str, strength: float) -> Path:
        """Where the pictures of a recipe, or of "base", at a strength lie."""
        return self.out / name / ("images" if strength == 1 else f"strength-{strength:g}")


def demo(
    out: Path | str = "runs/demo",
    style: str = STYLE,
    concept: str | None = None,
    base: str = "mini-sd3",
    seed: int = 0,
    steps: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    count: int | None = None,
    judges: Judges | None = None,
    encoder: Any = "clip",
    console: Console | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the demo into `out` and return what scores.json holds: {recipe: scores, "base", "true", "about"}.

    style: a held-out style of the packaged slice. concept: label of the reference's object (a reference concept).
    steps: training steps of every recipe; default the base's own. strengths: for the trade-off picture; 1 is always
    among them. count: evaluation concepts, see `make_plan`. judges, encoder: default the packaged ones. also: further
    recipes of the package beside the two.
    UserError when style or concept is not in the slice, a recipe is unknown, or `out` holds something that is no demo.
    """
    console = console or Console()
    started = time.perf_counter()
    if unknown := [name for name in also if name not in recipes()]:
        raise UserError(f"unknown recipe {unknown[0]!r}; {nearest(unknown[0], list(recipes()))}")
    plan = make_plan(Path(out), style, concept, base, seed, count)
    plan = replace(plan, recipes=tuple(dict.fromkeys((*RECIPES, *also))))
    configs = {name: check_ranges(config_of(plan, name, steps)) for name in plan.recipes}
    prepare_folder(plan, configs)
    judges = judges if judges is not None else Judges.load()
    with quiet():
        encoder = load_encoder() if encoder == "clip" else encoder
    drawn_of = len(plan.prompts_for)
    points = [("base", 1.0), *((name, s) for name in plan.recipes for s in sorted({*strengths, 1.0}))]
    scores = {}
    with quiet(), stages(console) as stage:
        for name, config in configs.items():
            train_once(config, stage(f"train {name}", config.steps))
        for name, strength in points:
            draw(plan, name, strength, stage(f"draw {name}" + (f":{strength:g}" if strength != 1 else ""), drawn_of))
            scores[name, strength] = score(plan, name, strength, judges, encoder)
    results = {name: brief(scores[name, 1.0]) for name in (*plan.recipes, "base")}
    results |= {"true": scores["base", 1.0]["true"]}
    sweep = {name: [{"strength": s, **brief(scores[name, s])} for n, s in points if n == name] for name in plan.recipes}
    results["about"] = about(plan, configs)
    results["about"] |= {f"concept_top5_of_{name}": kept(plan, results, name) for name in ("base", "true")}
    results["about"]["seconds"] = round(time.perf_counter() - started, 1)
    write_json(plan.out / "strengths.json", sweep | {"base": results["base"], "true": results["true"]})
    write_json(plan.out / "scores.json", results)
    with atomic(plan.out / "grid.png") as file:
        grid(plan).save(file, "PNG")
    page(plan)
    show(console, plan, results)
    return results


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
    same = {"base": families.load(plan.base).hash, "seed": plan.seed, "prompts": [*map(plan.prompt, plan.prompts_for)]}
    runs = {name: marked(config) | {"style_guidance": GUIDED.get(name)} for name, config in configs.items()}
    before = read_mark(mark)
    known = before.get("runs", {}) if {key: before.get(key) for key in same} == same else {}
    stale = [name for name in runs if runs[name] != known.get(name, runs[name])] if known else ["base", *recipes()]
    for name in stale:
        shutil.rmtree(plan.out / name, ignore_errors=True)
    settings = same | {"runs": known | runs}
    if settings != before:
        for name in RESULTS:
            (plan.out / name).unlink(missing_ok=True)
    picture = true_pictures(plan.style, [plan.concept])[plan.concept]
    with atomic(plan.out / "reference.png") as path:
        picture.save(path)
    write_json(mark, settings)


def marked(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run that make its weights: all but how its folder is spelled."""
    return {key: value for key, value in as_dict(config).items() if key not in ("image", "out")}


def read_mark(mark: Path) -> dict[str, Any]:
    """What demo.json says, {} where there is none that can be read."""
    try:
        return families.read_object(mark)
    except (OSError, ValueError):
        return {}


def train_once(config: TrainConfig, tick: Tick) -> None:
    """Train, or go on; `train` itself knows what is complete."""
    train(config, lambda step, loss: tick(step, config.steps))
    tick(config.steps, config.steps)


def draw(plan: Plan, name: str, strength: float, tick: Tick) -> None:
    """The pictures of a recipe or of "base", as `impasto generate` draws them; nothing when they are all there."""
    folder = plan.folder(name, strength)
    styles = () if name == "base" else (f"{plan.out / name}:{strength:g}",)
    prompts = [plan.prompt(concept) for concept in plan.prompts_for]
    if folder.is_dir() and drawn(folder) == prompts:
        return tick(len(prompts), len(prompts))
    shutil.rmtree(folder, ignore_errors=True)
    settings = GenerateConfig(
        base=plan.base,
        prompt=tuple(prompts),
        style=styles,
        style_guidance=GUIDED.get(name),
        seed=plan.seed,
        out=folder,
    )
    generate_folder(settings, tick)
    return None


def drawn(folder: Path) -> list[str | None]:
    """Prompts of the pictures in a folder, [] when one of them cannot be read."""
    try:
        return [sample.prompt for sample in read_folder(folder)]
    except UserError:
        return []


def score(plan: Plan, name: str, strength: float, judges: Judges, encoder: Any) -> dict[str, Any]:
    """`impasto evaluate`; the recipes at full strength beside the base's pictures."""
    meta = load_meta()
    return evaluate(
        plan.folder(name, strength),
        meta["style_names"][plan.style],
        reference=plan.out / "reference.png",
        reference_concept=meta["concepts"][plan.concept]["label"],
        base_images=plan.folder("base", 1.0) if name != "base" and strength == 1 else None,
        judges=judges,
        encoder=encoder,
    )


def brief(scores: dict[str, Any]) -> dict[str, Any]:
    """The means with their spread, without the rows of single images."""
    return {key: value for key, value in scores.items() if key not in ("images", "true", "base", "notes", "folder")}


def kept(plan: Plan, results: dict[str, Any], of: str) -> dict[str, float | None]:
    """Concept top-5 of each recipe as a share of that of the base's pictures on the same prompts, or of the true ones;
    None where these have none."""
    whole = results[of]["concept_top5"]
    return {name: results[name]["concept_top5"] / whole if whole else None for name in plan.recipes}


def about(plan: Plan, configs: dict[str, TrainConfig]) -> dict[str, Any]:
    """What was run."""
    meta = load_meta()
    return {
        "base": plan.base,
        "style": meta["style_names"][plan.style],
        "reference": meta["concepts"][plan.concept]["label"],
        "caption": plan.prompt(plan.concept),
        "concepts": [meta["concepts"][i]["label"] for i in plan.prompts_for],
        "steps": {name: config.steps for name, config in configs.items()},
        "strength": 1.0,
        "style_guidance": {name: GUIDED[name] for name in plan.recipes if name in GUIDED},
        "seed": plan.seed,
    }


def grid(plan: Plan) -> Image.Image:
    """The reference, then true pictures, base and the recipes, a column per concept."""
    truths = true_pictures(plan.style, plan.prompts_for)
    labels = [load_meta()["concepts"][i]["label"] for i in plan.prompts_for]
    rows: dict[str, list[Image.Image | None]] = {"true": [truths.get(i) for i in plan.prompts_for]}
    for name in ("base", *plan.recipes):
        rows[name] = [sample.image for sample in read_folder(plan.folder(name, 1.0))]
    title = f"one reference: {plan.prompt(plan.concept)}"
    return sheet(rows, labels, title=title, reference=open_image(plan.out / "reference.png")[0])


def page(plan: Plan) -> None:
    """runs/demo/report.html."""
    first, *others = plan.recipes
    report(
        plan.out / first,
        beside={name: plan.out / name for name in (*others, "base")},
        strengths=plan.out / "strengths.json",
        title=f"One picture of {load_meta()['style_names'][plan.style]}",
        out=plan.out / "report.html",
    )


def show(console: Console, plan: Plan, results: dict[str, Any]) -> None:
    """The table on the terminal and where to look."""
    order = {name: name for name in ("base", *plan.recipes, "true")}
    title = f"{results['about']['style']} from one {results['about']['reference']}, mean [95 %]"
    console.print(scores_table({order[key]: results[key] for key in order}, title, TABLE))
    for of, whose in (("base", "the base's"), ("true", "the true pictures'")):
        shares = results["about"][f"concept_top5_of_{of}"].items()
        said = ", ".join(f"{name} {'unknown' if share is None else format(share, '.2f')}" for name, share in shares)
        console.print(f"concept top-5 as a share of {whose}: {said}")
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
