"""`impasto compare`: which cells, their runs, the table and the page.

    references x methods x seeds -> cells -> locally or over Ray -> table.json, index.html, grid-*.png

The same command resumes; with further methods, references or seeds only what is new is run. Methods that the base, or a
reference, cannot be used with are named before anything is trained.
"""

import json
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from impasto.bases import cards
from impasto.compare import methods as found_methods
from impasto.compare.cells import VERSION, Cell, Instruments, Setting, family_of, read_cell, run_cell
from impasto.compare.methods import Method, find_methods
from impasto.compare.page import write_page
from impasto.compare.references import ReferenceImage, collect
from impasto.compare.table import Done, make_rows, reference_row
from impasto.config import TrainConfig
from impasto.errors import UserError
from impasto.families.base import Family, quiet
from impasto.files import atomic, read_json_or_empty, writable_folder
from impasto.generation import generate
from impasto.parallel import fan
from impasto.progress import Progress, ignore
from impasto.sampling.sample import Sampling
from impasto.training.fit import measure_step
from impasto.training.plan import make_plan

TABLE, PAGE, STEPS = "table.json", "index.html", "steps.json"
Equal = Literal["steps", "seconds", "own"]
PLAIN_RECIPE_OVERHEAD = 12.0
"""Seconds of loading, preparing and saving around a training, for estimates."""


def compare(
    names: Sequence[str],
    out: Path | str,
    base: str | None = None,
    image: Sequence[Path] = (),
    caption: Sequence[str] = (),
    references: Path | None = None,
    art_style: Sequence[str] = (),
    per_style: int = 1,
    style_of: str | None = None,
    prompt: Sequence[str] = (),
    count: int = 24,
    seeds: int = 1,
    steps: int | None = None,
    equal: Equal = "steps",
    seconds: float | None = None,
    row: str | None = None,
    sampling_steps: int | None = None,
    clip: str = "clip",
    dino: str | None = None,
    skip: bool = False,
    workers: int = 1,
    cluster: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    dry_run: bool = False,
    command: Sequence[str] = (),
    progress: Progress = ignore,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the missing cells of methods x references x seeds into `out`, write table and page; returns a summary.

    names: recipes, style folders, "prompt", "style-aligned". steps, equal: all trainings have `steps` (the base's own
    number when None); with "seconds" each has as many as fit into `seconds` (by default what the reference row's
    take); with "own" each recipe its own number. row: the method at whose text the others are read, see
    `table.reference_row`. sampling_steps: of images, the base's own when None. skip: leave out methods that cannot be
    used instead of stopping. Raises UserError on bad input.
    """
    base, out = base or TrainConfig.base, Path(out)
    if seeds < 1 or count < 1:
        raise UserError("--seeds and --count must be at least 1")
    chosen = find_methods(names)
    row = reference_row(chosen, row)
    shown = collect(image, caption, references, art_style, per_style, style_of, prompt, count)
    by = instruments(base, shown, clip, dino)
    hardware = {"device": device, "precision": precision}
    chosen, skipped = usable(chosen, shown, base, out, steps, skip, hardware, log)
    row = reference_row(chosen, row if row in [method.name for method in chosen] else None)
    progress(f"loading {base}")
    family = family_of(base, device, precision)
    sampling = {"steps": sampling_steps} if sampling_steps else {}
    setting = Setting(out, base, family.hash, {}, sampling, by, device, precision)
    about: dict[str, Any] = {"out": str(out), "base": base, "methods": [method.name for method in chosen]}
    about |= {"references": [one.name for one in shown], "seeds": seeds, "reference_row": row, "skipped": skipped}
    if not dry_run:
        writable_folder(out)
    planned = steps_of(chosen, shown[0], setting, steps, equal, seconds, row, dry_run, progress)
    setting = replace(setting, steps=planned)
    cells = make_cells(chosen, shown, range(seeds), setting, family)
    missing = [cell for cell in cells if read_cell(cell, setting) is None]
    about |= {"cells": len(cells), "done_before": len(cells) - len(missing), "steps": planned}
    if dry_run:
        minutes = estimate_minutes(missing, cells, setting, family, max(1, workers))
        return about | {"to_run": [f"{cell.method.name}, {cell.unit}" for cell in missing], "minutes": minutes}
    started = time.perf_counter()
    results, failed = {}, []
    try:
        failed = run_missing(missing, setting, workers, cluster, progress)
    finally:  # also after an interruption the page shows what is there
        done = finished(cells, setting)
        if done:
            about |= {"failed": failed, "command": shlex.join(["impasto", "compare", *command]) if command else None}
            results = write_results(chosen, shown, done, setting, about, row)
    about |= {"run": len(missing) - len(failed), "seconds": round(time.perf_counter() - started, 1)}
    return about | {"failed": failed, "page": str(out / PAGE), "table": str(out / TABLE)} | results


def instruments(base: str, references: Sequence[ReferenceImage], clip: str, dino: str | None) -> Instruments:
    """The judges where the base is an embedded one and every reference is of a style of the art world, else CLIP.
    Raises UserError where the small CLIP would score another base's images."""
    embedded = bool(cards.card(base).get("embedded"))
    if not embedded and clip == "clip":
        raise UserError(
            f"the small CLIP was not made for images of {base!r}: name an encoder, --clip openai/clip-vit-base-patch32"
        )
    return Instruments(embedded and all(one.style for one in references), clip, dino)


def usable(
    chosen: Sequence[Method],
    references: Sequence[ReferenceImage],
    base: str,
    out: Path,
    steps: int | None,
    skip: bool,
    hardware: Mapping[str, Any],
    log: Callable[[str], None],
) -> tuple[list[Method], dict[str, str]]:
    """(the methods that can be used, {other: why}). Raises UserError naming all others unless `skip`."""
    left, wrong = [], {}
    for method in chosen:
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run gives them
                for reference in references[: None if found_methods.reads_caption(method, base) else 1]:
                    found_methods.check(method, reference, base, out / "check", steps, **hardware)
            left.append(method)
        except UserError as error:
            wrong[method.name] = str(error)
    if wrong and not (skip and left):
        listed = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        raise UserError(f"{base} cannot be used with {listed}. Leave them out, or give --skip")
    for name, why in wrong.items():
        log(f"left out: {name}: {why}")
    return left, wrong


def steps_of(
    chosen: Sequence[Method],
    reference: ReferenceImage,
    setting: Setting,
    steps: int | None,
    equal: Equal,
    seconds: float | None,
    row: str,
    dry: bool,
    progress: Progress,
) -> dict[str, int | None]:
    """{trained method: its steps}. For equal seconds a step of each is measured once; the numbers are kept in
    steps.json, so that the same command finds its cells again. Raises UserError where a step cannot be measured."""
    trained = [method for method in chosen if method.trained]
    if equal == "own":
        return {method.name: steps for method in trained}
    default = steps or found_methods.default_steps(setting.base)
    if equal == "steps":
        return {method.name: default for method in trained}
    file = setting.out / STEPS
    asked = {"base": setting.base_hash, "device": setting.device, "seconds": seconds, "steps": default, "row": row}
    kept = read_json_or_empty(file)
    measured = dict(kept.get("step_seconds", {})) if kept.get("asked") == asked else {}
    for method in trained:
        if method.name not in measured:
            progress(f"measuring a step of {method.name}")
            measured[method.name] = step_seconds(method, reference, setting)
    if seconds is None:
        if row not in measured:
            raise UserError("--equal seconds needs a trained reference row, or --seconds")
        seconds = default * measured[row]
    if not dry:
        with atomic(file) as temporary:
            temporary.write_text(json.dumps({"asked": asked, "step_seconds": measured}, indent=1) + "\n")
    return {method.name: max(1, round(seconds / measured[method.name])) for method in trained}


def step_seconds(method: Method, reference: ReferenceImage, setting: Setting) -> float:
    """Seconds of one step of a recipe, its fitting stage. Raises UserError where that is not measured."""
    config = found_methods.config_of(
        method, reference, setting.base, 0, setting.out / "check", None, **setting.hardware
    )
    if hasattr(config.method, "training"):
        config = config.method.training(config)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cost = measure_step(make_plan(config))
    if cost is None:
        raise UserError("--equal seconds measures steps of small bases on a CPU only: use --equal steps here")
    return cost["step_seconds"]


def make_cells(
    chosen: Sequence[Method],
    references: Sequence[ReferenceImage],
    seeds: Sequence[int],
    setting: Setting,
    family: Family,
) -> list[Cell]:
    """All cells, the cheap ones of each reference first."""
    found = []
    for seed in seeds:
        for reference in references:
            for method in sorted(chosen, key=lambda one: one.trained):
                config = None
                if method.trained:
                    steps = setting.steps.get(method.name)
                    config = found_methods.config_of(method, reference, setting.base, seed, setting.out, steps)
                found.append(Cell(method, reference, seed, make_spec(method, config, reference, seed, setting, family)))
    return found


def make_spec(
    method: Method, config: Any, reference: ReferenceImage, seed: int, setting: Setting, family: Family
) -> dict[str, Any]:
    """All that a cell's images depend on."""
    own = Sampling(**setting.sampling).on(family)
    return {
        "version": VERSION,
        "base": family.hash,
        "precision": family.precision,
        "method": found_methods.spec_of(method, config),
        "reference": {"sha256": reference.sha256, "caption": reference.caption},
        "prompts": list(reference.prompts),
        "seed": seed,
        "sampling": {"steps": own.steps, "guidance": own.guidance, "size": own.size},
    }


def run_missing(
    missing: Sequence[Cell], setting: Setting, workers: int, cluster: str | None, progress: Progress
) -> list[str]:
    """Run the cells; those that another process is running are waited for at the end. Returns the failed ones as
    messages."""
    failed, done, total = [], 0, len(missing)
    left: Sequence[Cell] = missing
    try:
        for wait in (False, True):
            busy = []
            for cell, result in fan(run_cell, left, (setting, wait), workers, cluster):
                if isinstance(result, dict) and result.get("busy"):
                    busy.append(cell)
                    continue
                done += 1
                note = "failed" if isinstance(result, str) else "done"
                if isinstance(result, str):
                    failed.append(f"{cell.method.name}, {cell.unit}: {result}")
                progress("cells", done, total, f"{cell.method.name}, {cell.unit}: {note}")
            left = busy
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {total} cells are done: the same command resumes") from None
    return failed


def finished(cells: Sequence[Cell], setting: Setting) -> Mapping[str, Done]:
    """{method: {unit: (cell, content)}} of all cells that are there, also by other processes."""
    found: dict[str, dict[str, tuple[Cell, Mapping[str, Any]]]] = {}
    for cell in cells:
        if (content := read_cell(cell, setting)) is not None:
            found.setdefault(cell.method.name, {})[cell.unit] = (cell, content)
    return found


def write_results(
    chosen: Sequence[Method],
    references: Sequence[ReferenceImage],
    done: Mapping[str, Done],
    setting: Setting,
    about: Mapping[str, Any],
    row: str,
) -> dict[str, Any]:
    """Write table.json, the grids and the page; returns the ranking."""
    table = dict(about) | {"instruments": setting.instruments.describe(), "base_sha256": setting.base_hash}
    table |= {"captions": {one.name: one.caption for one in references}}
    table |= make_rows(chosen, done, row)
    with atomic(setting.out / TABLE) as file:
        file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(table, chosen, references, done, setting)
    ranking = {one["recipe"]: one["equal_text"]["style"] for one in table["rows"]}
    return {"text": table["text"], "style_at_equal_text": ranking}


def estimate_minutes(
    missing: Sequence[Cell], cells: Sequence[Cell], setting: Setting, family: Family, workers: int
) -> float | None:
    """Minutes of the missing cells: by the mean of the method's finished ones, else by a measured image and a measured
    step of a recipe without prior; None where a step cannot be measured (other bases than small ones on a CPU)."""
    known: dict[str, list[float]] = {}
    for cell in cells:
        if (content := read_cell(cell, setting)) is not None:
            images = sum(1 for _ in content["curve"]) * len(cell.reference.prompts)
            own = (content["train_seconds"] or 0.0) + images * content["seconds_per_image"]
            known.setdefault(cell.method.name, []).append(own)
    total, per_image, per_step = 0.0, None, None
    for cell in missing:
        if times := known.get(cell.method.name):
            total += sum(times) / len(times)
            continue
        if per_image is None:
            per_image = image_seconds(cell, setting)
        guided = 2 if cell.method.trained and cards.card(setting.base).get("style", {}).get("style_guidance") else 1
        total += guided * per_image * len(cell.method.factors) * len(cell.reference.prompts)
        if not cell.method.trained:
            continue
        if per_step is None:
            plain = Method(found_methods.PLAIN, "recipe", found_methods.PLAIN)
            try:
                per_step = step_seconds(plain, cell.reference, setting)
            except UserError:
                return None
        total += training_estimate(cell, setting, per_image, per_step)
    return round(total / 60 / workers, 1)


def training_estimate(cell: Cell, setting: Setting, per_image: float, per_step: float) -> float:
    """Seconds of a cell's training. A forward pass alone counts a third of a step; prior images a batch more, and their
    generation; InstaStyle its 15 candidates and three inversions."""
    config = found_methods.config_of(
        cell.method, cell.reference, setting.base, cell.seed, setting.out, setting.steps.get(cell.method.name)
    )
    plain = found_methods.config_of(
        Method(found_methods.PLAIN, "recipe", found_methods.PLAIN), cell.reference, setting.base, 0, setting.out
    )
    share = config.optim.batch * config.optim.accumulate / (plain.optim.batch * plain.optim.accumulate)
    extra = config.objective.extra_forwards / 3
    images = 0.0
    if config.prior.weight:
        extra += min(config.prior.batch, config.optim.batch) / config.optim.batch
        captions = config.prior.prompt or cards.card(setting.base).get("prior_prompts", ())
        images += len(captions) * config.prior.per_prompt
    if hasattr(config.method, "training"):
        images += 2 * (15 + 3)
    return PLAIN_RECIPE_OVERHEAD + config.optim.steps * per_step * share * (1 + extra) + images * per_image


def image_seconds(cell: Cell, setting: Setting) -> float:
    """Seconds of an image by the base alone, of a batch of up to four, after one that is not counted."""
    prompts = cell.reference.prompts[:4]
    times = []
    for _ in range(2):
        started = time.perf_counter()
        list(generate(setting.base, prompts, sampling=Sampling(**setting.sampling), **setting.hardware))
        times.append(time.perf_counter() - started)
    return times[-1] / len(prompts)
