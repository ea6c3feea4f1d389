"""Checkpoint x strength: the same prompts from the same seed by every saved state of a run, as one sheet.

How far a style should be trained, and how strongly it should be used, is one question: a late state at .5 may look like
an early one at 1. Everything is drawn by the code of `generate`.
"""

import json
import math
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from impasto.adapters.base import adapter_of
from impasto.adapters.text_encoder import build_text
from impasto.bases import loader
from impasto.bases.style_defaults import STYLE_WORDS
from impasto.coerce import check_seed
from impasto.config import TrainConfig, build_config, flatten, read_recipe_file, to_paths
from impasto.contact_sheet import sheet
from impasto.data import captions, items
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.families.base import Condition
from impasto.files import atomic, read_json_or_empty, writable_folder
from impasto.generation import StrengthSessions, generate_command
from impasto.guidance import bind_all
from impasto.progress import Progress, ignore, part
from impasto.sampling.png import read_png_metadata
from impasto.sampling.prompts import check_prompts
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles import defaults as style_defaults
from impasto.styles.metadata import read_about
from impasto.styles.parts import has_weights
from impasto.training.checkpoints import read_adapter, saved_states

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
KEYS = {"run", "base", "strengths", "sampling_steps"}
"""By which a sheet, or its JSON, is known as one."""


def checkpoint_sheet(
    run: Path,
    prompts: Sequence[str] = (),
    strengths: Sequence[float] = STRENGTHS,
    *,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    style_guidance: float | None = None,
    negative: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = ignore,
) -> dict[str, Any]:
    """Write `sheet.png` and `sheet.json` into the style folder (or `out`, its JSON beside it); returns what is in it.
    A style folder without a run, see `strength_sheet`, has the finished style as its one row.

    guidance, style_guidance, negative: as in `generate`; those of the style's defaults where they are None. A row per
    saved state (and prompt), a column per strength; the moving average where the run had one, as its style
    has. Raises UserError when the folder holds no run or no saved state, and where a file that is no sheet would be
    replaced, before anything is drawn.
    """
    options = {"seed": seed, "steps": steps, "guidance": guidance, "style_guidance": style_guidance}
    options |= {"negative": negative, "out": out, "device": device, "precision": precision, "progress": progress}
    if not (run / "recipe.toml").exists() and has_weights(run):
        return strength_sheet(run, prompts, strengths, **options)
    config, inputs = read_run(run)
    states = saved_states(run / "state")
    if not states:
        raise UserError(f"{str(run)!r} holds no saved state: train it first, with --keep 0 to keep all of them")
    check_strengths(strengths)
    prompts = list(prompts) or own_prompts(run, config, inputs)
    check_prompts(prompts)
    seed, out = config.seed if seed is None else seed, out or run / "sheet.png"
    check_seed(seed)
    check_out(out)
    writable_folder(out.parent, out)
    progress(f"loading {config.base}")
    family = loader.load(config.base, device=device, precision=precision, components=config.components)
    running.check_quantized(config.execution.quantize, family.device)
    with running.in_main_memory(family):
        text = build_text(config)
        named = text.attach(family)
        clips = text.models()
        running.quantize(family.denoiser, config.execution.quantize, family.dtype)  # as it was trained
        named |= adapter_of(config.adapter).attach(family, config.adapter, config.seed)
        for p in named.values():  # as `generate` has it, where diffusers loads a style in the base's precision
            p.data = p.data.to(family.dtype)
        pipe = family.pipeline(**{family.part: family.denoiser}, **clips)
    trained_on = captions.of_run(flatten(config), inputs)
    if negative == STYLE_WORDS:
        negative = style_defaults.in_words(negative, trained_on, f"style {str(run)!r}", family, "--negative")
    given = Sampling(steps, guidance, negative, config.data.size, style_guidance=style_guidance)
    known = encoder(family, pipe)
    _, sampling, settings = style_defaults.of_run(replace(config, out=run), family, trained_on, given)
    running.place_pipeline(pipe, family, (sampling.batch or 1) * config.data.size**2)

    @torch.no_grad()
    def encode(prompt: str) -> Condition:
        return text.encode([prompt], known(text.spell(prompt)))

    guidances = bind_all(settings, family, sampling, encode)
    pictures: dict[tuple[int, float], list[Image.Image]] = {}
    for step, file in states.items():
        put(named, read_adapter(file), f"{run}, step {step}")
        for strength in strengths:
            pipe.set_adapters(["default"], [strength])
            jobs = [(prompt, seed) for prompt in prompts]
            own = part(progress, len(pictures), len(states) * len(strengths))
            images = sample(family, pipe, jobs, encode, sampling, {}, guidances, progress=own)
            pictures[step, strength] = [image for image, _ in images]
    about = {"run": str(run), "base": config.base, "steps": list(states), "strengths": list(strengths)}
    about |= {"prompts": prompts, "seed": seed, "sampling_steps": sampling.steps, "guidance": sampling.guidance}
    about |= sampling.weights(family).info | {"negative_prompt": sampling.negative}
    rows, columns = {step: f"step {step}" for step in states}, {s: f"{s:g}" for s in strengths}
    write_sheet(out, pictures, rows, columns, prompts, config.data.size, about)
    commands = {
        rows[step]: generate_command(config.base, f"{run}@{step}", prompts[0]) + f" --seed {seed}" for step in states
    }
    return about | {"out": str(out), "commands": commands}


def check_strengths(strengths: Sequence[float]) -> None:
    if not strengths:
        raise UserError("no strength: give some with --strength 0.5 1")
    if odd := [strength for strength in strengths if not math.isfinite(strength)]:
        raise UserError(f"a strength must be a finite number, not {odd[0]}")


def strength_sheet(
    style: Path,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    seed: int | None,
    steps: int | None,
    guidance: float | None,
    style_guidance: float | None,
    negative: str | None,
    out: Path | None,
    device: str,
    precision: str,
    progress: Progress,
) -> dict[str, Any]:
    """The sheet of a style folder without a run (of `resize`, `merge`, `import`): one row per prompt, generated as
    `impasto generate --style folder:strength` does. Raises UserError where it states no base."""
    about = read_about(style)
    if about.base is None:
        raise UserError(f"the style {str(style)!r} does not state its base: write it again with --base")
    check_strengths(strengths)
    prompts = list(prompts) or style_defaults.prompts_of_others(about.captions, 1) or about.captions[: items.PREVIEWS]
    if not prompts:
        raise UserError(f"the style {str(style)!r} states no captions: give a --prompt")
    check_prompts(prompts)
    seed, out = seed or 0, out or style / "sheet.png"
    check_out(out)
    writable_folder(out.parent, out)
    given = Sampling(steps, guidance, negative, style_guidance=style_guidance)
    pictures: dict[tuple[str, float], list[Image.Image]] = {}
    info: dict[str, Any] = {}
    common = {"sampling": given, "device": device, "precision": precision, "progress": progress}
    sessions = StrengthSessions(about.base, style, **common)
    sessions.at(strengths[0]).check_prompts(prompts)
    for strength in strengths:
        own = part(progress, len(pictures), len(strengths))
        found = list(sessions.at(strength).sample([(prompt, seed) for prompt in prompts], progress=own))
        pictures["style", strength], info = [image for image, _ in found], found[0][1]
    content = {"run": str(style), "base": about.base, "strengths": list(strengths), "prompts": prompts, "seed": seed}
    content |= {"sampling_steps": info.get("steps"), "guidance": info.get("guidance")}
    columns = {s: f"{s:g}" for s in strengths}
    write_sheet(
        out, pictures, {"style": style.name}, columns, prompts, pictures["style", strengths[0]][0].width, content
    )
    command = generate_command(about.base, str(style), prompts[0]) + f" --seed {seed}"
    return content | {"out": str(out), "commands": {style.name: command}}


def write_sheet(
    out: Path,
    pictures: Mapping[tuple[Any, Any], Sequence[Image.Image]],
    rows: Mapping[Any, str],
    columns: Mapping[Any, str],
    prompts: Sequence[str],
    size: int,
    about: Mapping[str, Any],
) -> None:
    """Write a contact sheet, a row per key of `rows` and prompt, and `about` into its PNG and the JSON beside it.

    pictures: (row, column) -> an image per prompt. rows, columns: key -> label. size: pixels of the images.
    """
    several = len(prompts) > 1
    cells = {
        label + (f", {i + 1}" if several else ""): [pictures[row, column][i] for column in columns]
        for i in range(len(prompts))
        for row, label in rows.items()
    }
    title = "; ".join(f"{i + 1}: {prompt}" if several else prompt for i, prompt in enumerate(prompts))
    grid = sheet(cells, list(columns.values()), cell=max(112, min(256, size)), title=title)
    mark = PngImagePlugin.PngInfo()
    mark.add_text("impasto", json.dumps(about))
    with atomic(out) as file:
        grid.save(file, format="PNG", pnginfo=mark)
    with atomic(out.with_suffix(".json")) as file:
        file.write_text(json.dumps({**about, "rows": list(cells)}, indent=1), encoding="utf-8")


def check_out(out: Path) -> None:
    """Raise UserError unless it is a name for a PNG, and neither it nor the JSON beside it is another's file."""
    if out.is_dir() or out.suffix.lower() != ".png":
        raise UserError(f"--out {str(out)!r} is no name for a PNG: give one such as sheet.png")
    for file, says in ((out, read_png_metadata), (out.with_suffix(".json"), read_json_or_empty)):
        if file.exists() and not says(file).keys() >= KEYS:
            raise UserError(f"{str(file)!r} was not written by `impasto sheet` and stays: give another --out")


def read_run(run: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of a run, from its recipe.toml, and what that says of what they met, under [impasto]."""
    try:
        keys, inputs = read_recipe_file(run / "recipe.toml")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UserError(f"{str(run)!r} is no style folder: it has no recipe.toml that can be read") from None
    return build_config(to_paths(keys, f"{run}/recipe.toml"), f"{run}/recipe.toml"), inputs


def own_prompts(run: Path, config: TrainConfig, inputs: Mapping[str, Any]) -> list[str]:
    """The prompts of a run's previews, else its first captions, as they were trained. inputs: what recipe.toml has in
    [impasto].

    Raises UserError where they cannot be known: an older run's, that lay beside its pictures only.
    """
    if config.log.preview_prompt:
        return [captions.fill(prompt, trigger=config.data.trigger) for prompt in config.log.preview_prompt]
    if known := captions.of_run(flatten(config), inputs):
        return list(dict.fromkeys(known))[: items.PREVIEWS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training said it
            found = [entry.caption or "" for entry in items.entries(config.data)]
    except UserError:
        raise UserError(
            f"the captions of {str(run)!r} lay beside its pictures, and are not there any more: give a --prompt"
        ) from None
    return list(dict.fromkeys(found))[: items.PREVIEWS]


def put(named: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor], where: str) -> None:
    """The adapter of a saved state into the model. Raises UserError unless they are the same weights, all of them."""
    wrong = named.keys() ^ tensors.keys()
    wrong |= {name for name in named.keys() & tensors.keys() if named[name].shape != tensors[name].shape}
    if wrong:
        name = min(wrong)
        what = "is missing" if name not in tensors else "is of another shape" if name in named else "has no place"
        raise UserError(f"the state of {where} is of another adapter: {name} {what}")
    for name, p in named.items():
        p.data.copy_(tensors[name])
