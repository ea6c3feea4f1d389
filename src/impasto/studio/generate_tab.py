"""The tab Generate: styles and prompts to images beside those of the base, and sheets of strengths and mixes."""

import time
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.errors import UserError
from impasto.sampling.png import read_png_metadata
from impasto.studio import forms
from impasto.studio.page import Studio, Task
from impasto.studio.queue import IMAGES
from impasto.studio.workspace import slug

STYLES = 3
"""Styles that the form has room for."""
STRENGTHS = ("0.25", "0.5", "0.75", "1.0")
NUMBERS = {
    "steps": "Sampling steps of an image.",
    "guidance": "Guidance scale.",
    "style_guidance": "Amplifies the styles; 0 is off.",
    "base_guidance": "Weight of the base's own guidance beside the style's.",
    "lambda1": "Weight of the style (FineStyle), in place of the guidances above.",
    "lambda2": "Weight of the semantics, beside lambda1.",
    "lambda_base": "Weight of the base's own guidance, beside lambda1.",
    "noise_random": "Of a style that keeps inversion noise: share that is drawn anew.",
    "alpha": "Of a mix of two: the second one's share of the noise.",
    "beta": "Of a mix of two: the second one's weight in the prompt.",
}
SAMPLING = ("seed", "steps", "guidance", "style-guidance", "negative")
"""Arguments that the sheets have as well."""
FIRST = ("steps", "guidance", "style_guidance")


def generate_tab(studio: Studio, tab: gr.Tab, timer: gr.Timer) -> None:
    workspace, guard = studio.workspace, studio.guard
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                label="Prompts, one a line", lines=2, elem_id="prompt", placeholder="cactus, in the words of the style"
            )
            styles, strengths = [], []
            for i in range(STYLES):
                with gr.Row():
                    styles.append(
                        gr.Dropdown(
                            [""], value="", label=f"Style {i + 1}", min_width=150, scale=3, elem_id=f"style-{i + 1}"
                        )
                    )
                    strengths.append(gr.Number(1, minimum=0, step=0.05, label="Strength", min_width=90, scale=1))
            base = gr.Dropdown(workspace.bases(), value="mini-sd3", allow_custom_value=True, label="Base model")
            with gr.Row():
                count = gr.Number(1, precision=0, minimum=1, label="Count", min_width=90, elem_id="count")
                seed = gr.Number(0, precision=0, label="Seed", min_width=90, elem_id="image-seed")
                beside = gr.Checkbox(True, label="The base alone as well", min_width=150, elem_id="beside")
            negative = gr.Textbox(label="Negative prompt", placeholder="the style's own")
            with gr.Row():
                numbers = {name: number_box(name) for name in FIRST}
            with gr.Accordion("Style and semantics, mixes", open=False), gr.Row():
                numbers |= {name: number_box(name) for name in NUMBERS if name not in FIRST}
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                strength_sheet = gr.Button("Strength sheet", min_width=120, elem_id="strength-sheet")
                mix_sheet = gr.Button("Alpha x beta sheet", min_width=120, elem_id="mix-sheet")
            drop = gr.File(
                label="Drop a PNG of impasto: it fills the form", file_types=[".png"], height=140, elem_id="png"
            )
        with gr.Column(scale=3, min_width=320):
            task = Task(studio)
            earlier = gr.Dropdown([], label="Images", elem_id="earlier")
            shown: dict[str, Any] = {"columns": 3, "object_fit": "contain", "height": "auto"}
            shown["buttons"] = ["download", "fullscreen"]
            gallery = gr.Gallery(label="With the styles", elem_id="images", **shown)
            plain = gr.Gallery(label="The base alone", elem_id="plain", **shown)
    fields = [prompt, *styles, *strengths, base, count, seed, negative, *numbers.values()]

    def read(values: tuple[Any, ...]) -> tuple[list[str], list[str], str, list[str]]:
        """(prompts, chosen styles, base, arguments of both commands)."""
        names, weights = values[1 : 1 + STYLES], values[1 + STYLES : 1 + 2 * STYLES]
        base_name, many, first, no = values[1 + 2 * STYLES : 5 + 2 * STYLES]
        own = dict(zip(numbers, values[5 + 2 * STYLES :], strict=True))
        prompts = [line.strip() for line in str(values[0] or "").splitlines() if line.strip()]
        if not prompts:
            raise UserError("no prompt: write what to generate, in the words of the style")
        chosen = [
            f"{workspace.relative(workspace.existing(name, 'styles'))}:{float(weight):g}"
            for name, weight in zip(names, weights, strict=True)
            if name
        ]
        args = [f"--base={workspace.check_base(base_name)}", *(f"--prompt={one}" for one in prompts)]
        args += [f"--count={int(many or 1)}", f"--seed={int(first or 0)}"]
        args += [f"--{name.replace('_', '-')}={read_number(name, value)}" for name, value in own.items() if value]
        return prompts, chosen, base_name, [*args, *([f"--negative={no}"] if no else [])]

    def generate(with_base: bool, *values: Any) -> tuple[int, Any]:
        prompts, chosen, _, args = read(values)
        folder = new_folder(studio, prompts[0])
        number = queue_images(
            studio, ["generate", *args, *(f"--style={one}" for one in chosen), f"--out={folder}"], folder
        )
        if with_base and chosen:
            plain_args = select_args(args, "base", "prompt", "count", "seed", "steps")
            queue_images(studio, ["generate", *plain_args, f"--out={folder}/base"], f"{folder}/base")
        return number, gr.update(choices=image_sets(studio), value=folder)

    def sheet_of_strengths(*values: Any) -> tuple[int, Any]:
        prompts, chosen, _, given = read(values)
        if len(chosen) != 1:
            raise UserError("a strength sheet is of one style: choose it as Style 1, and none below it")
        folder, style = new_folder(studio, "strengths"), chosen[0].rpartition(":")[0]
        args = ["sheet", style, *(f"--prompt={one}" for one in prompts), "--strength", *STRENGTHS]
        args += [*select_args(given, *SAMPLING), f"--out={folder}/0000.png"]
        return queue_images(studio, args, folder), gr.update(choices=image_sets(studio), value=folder)

    def sheet_of_mixes(*values: Any) -> tuple[int, Any]:
        _, chosen, _, given = read(values)
        if len(chosen) != 1:
            raise UserError(
                "an alpha x beta sheet is of one style of two, as `impasto mix` makes it: choose it as Style 1"
            )
        folder = new_folder(studio, "mix")
        args = ["generate", "--grid", *select_args(given, "base", "prompt", *SAMPLING), f"--style={chosen[0]}"]
        args.append(f"--out={folder}")
        return queue_images(studio, args, folder), gr.update(choices=image_sets(studio), value=folder)

    for button, function, inputs in (
        (run, generate, [beside, *fields]),
        (strength_sheet, sheet_of_strengths, fields),
        (mix_sheet, sheet_of_mixes, fields),
    ):
        task.shown_after(button.click(guard(function), inputs, [task.number, earlier], show_progress="hidden"))

    def fill(file: str | None) -> list[Any]:
        meta = read_png_metadata(Path(file)) if file else {}
        if file:
            Path(file).unlink(missing_ok=True)
        found = forms.png_settings(meta, workspace.styles())
        if not found:
            raise UserError("this PNG states no settings of impasto: drop one that impasto generated")
        if found["missing"]:
            gr.Warning(f"{found['missing']} of its styles are not in this workspace")
        known = [*found["styles"], *[("", 1.0)] * STYLES][:STYLES]
        text = {name: found.get(name) for name in NUMBERS}
        return [
            None,
            found["prompt"],
            *(gr.update(choices=["", *workspace.styles()], value=name) for name, _ in known),
            *(weight for _, weight in known),
            found["base"] if found["base"] in workspace.bases() else "mini-sd3",
            1,
            found["seed"],
            found.get("negative_prompt") or "",
            *("" if text[name] is None else f"{text[name]:g}" for name in numbers),
        ]

    drop.upload(guard(fill), drop, [drop, *fields], show_progress="hidden")

    def opened() -> list[Any]:
        known = ["", *workspace.styles()]
        return [*[gr.update(choices=known)] * STYLES, gr.update(choices=image_sets(studio))]

    tab.select(opened, None, [*styles, earlier], show_progress="hidden")

    def base_of(name: str) -> Any:
        from impasto.styles.metadata import read_about

        own = read_about(workspace.existing(name, "styles")).base if name else None
        return own if own in workspace.bases() else gr.skip()

    styles[0].input(guard(base_of), styles[0], base, show_progress="hidden")
    seen = gr.State("")

    def refresh(number: int | None, folder: str | None, before: str) -> tuple[Any, ...]:
        line, stoppable = task.progress(number)
        own, of_base = pictures(studio, folder), pictures(studio, f"{folder}/base" if folder else None)
        if (key := f"{hash(line)} {folder} {own} {of_base}") == before:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), before
        return line, stoppable, own, gr.update(value=of_base, visible=bool(of_base)), key

    outputs = [task.view, task.button, gallery, plain, seen]
    timer.tick(refresh, [task.number, earlier, seen], outputs, show_progress="hidden")
    earlier.change(refresh, [task.number, earlier, seen], outputs, show_progress="hidden")


def number_box(name: str) -> gr.Textbox:
    return gr.Textbox(
        label=name.replace("_", " "),
        info=NUMBERS[name],
        placeholder="default",
        min_width=130,
        elem_id=f"number-{name.replace('_', '-')}",
    )


def select_args(args: list[str], *names: str) -> list[str]:
    """The arguments with these names."""
    return [arg for arg in args if arg.startswith(tuple(f"--{name}=" for name in names))]


def read_number(name: str, value: Any) -> str:
    """A number as an argument. Raises UserError."""
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{name.replace('_', ' ')} must be a number, not {str(value)[:40]!r}") from None
    return str(int(number)) if name == "steps" else f"{number:g}"


def new_folder(studio: Studio, text: str) -> str:
    """The name of a new folder of images, by the time and the first words of the prompt."""
    return studio.workspace.unused("images", f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(text)[:24]}".strip("-"))


def queue_images(studio: Studio, args: list[str], folder: str) -> int:
    (studio.workspace.root / folder).mkdir(parents=True, exist_ok=True)
    return studio.queue.add(args, folder, folder, IMAGES)


def image_sets(studio: Studio) -> list[str]:
    return studio.workspace.folders("images")


def pictures(studio: Studio, folder: str | None) -> list[str]:
    """The PNGs of a folder of images, in order; [] where it is none."""
    if not folder:
        return []
    try:
        place = studio.workspace.inside(folder, "images")
    except UserError:
        return []
    return [str(file) for file in sorted(place.glob("*.png")) if not file.name.startswith(".")]
