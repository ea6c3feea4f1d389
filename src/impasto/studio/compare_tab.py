"""The tab Compare: pages of comparisons and reports in the workspace, and a form for a new comparison."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.compare.methods import TRAINING_FREE
from impasto.config import recipes
from impasto.errors import UserError
from impasto.report.html import Html
from impasto.studio.page import Studio, empty
from impasto.studio.queue import RUNS

LARGEST = 40 << 20  # bytes of a page


def compare_tab(studio: Studio, tab: gr.Tab) -> None:
    workspace, guard = studio.workspace, studio.guard
    chosen = gr.Dropdown([], label="Comparison or report", elem_id="comparison")
    page = gr.HTML(empty("No comparison in this workspace."), elem_id="comparison-page")

    def show(name: str | None) -> Html:
        if not name:
            return empty("No comparison or report in this workspace.")
        kind = name.split("/")[0]
        if kind not in ("comparisons", "styles"):
            raise UserError(f"{name!r} is not a page of the workspace")
        file = workspace.existing(name, kind)
        if file.suffix != ".html" or file.stat().st_size > LARGEST:
            raise UserError(f"{file.name} is not a page that can be shown here")
        return framed(file)

    def refresh(name: str | None) -> tuple[Any, Html]:
        found = pages(workspace.root)
        value = name if name in found else next(iter(found), None)
        return gr.update(choices=found, value=value), show(value)

    tab.select(guard(refresh), chosen, [chosen, page], show_progress="hidden")
    chosen.input(guard(show), chosen, page, show_progress="hidden")
    new_comparison(studio, tab)


def new_comparison(studio: Studio, tab: gr.Tab) -> None:
    """The form of `impasto compare`."""
    workspace, guard = studio.workspace, studio.guard
    with gr.Accordion("New comparison", open=False):
        methods = gr.Dropdown([*TRAINING_FREE, *recipes()], multiselect=True, label="Methods", elem_id="methods")
        with gr.Row():
            image = gr.Dropdown([], label="Reference", min_width=180)
            caption = gr.Textbox(label="Caption", placeholder="a rocket in pixel art style", min_width=180)
        with gr.Row():
            base = gr.Dropdown(
                workspace.bases(), value="mini-sd3", allow_custom_value=True, label="Base", min_width=140
            )
            steps = gr.Number(150, precision=0, minimum=1, label="Steps of each training", min_width=120)
            count = gr.Number(8, precision=0, minimum=1, label="Prompts", min_width=90)
            name = gr.Textbox(label="Name", min_width=140)
        start = gr.Button("Add to the queue", variant="primary", elem_id="start-comparison")

    def choices() -> tuple[Any, Any]:
        references = [workspace.relative(file) for file in sorted((workspace.root / "references").iterdir())]
        return gr.update(choices=[*TRAINING_FREE, *recipes(), *workspace.styles()]), gr.update(choices=references)

    def add(
        chosen: list[str], file: str | None, text: str, base_name: str, many: int, prompts: int, title: str
    ) -> None:
        if len(chosen or []) < 2:
            raise UserError("a comparison needs two methods or more")
        if not text.strip():
            raise UserError("no caption: say what the reference shows and in what style")
        known = [*TRAINING_FREE, *recipes()]
        names = [one if one in known else workspace.relative(workspace.existing(one, "styles")) for one in chosen]
        folder = workspace.new("comparisons", title)
        args = ["compare", *names, f"--base={workspace.check_base(base_name)}", f"--caption={text}"]
        args += [f"--image={workspace.relative(workspace.existing(file, 'references'))}", f"--steps={int(many)}"]
        studio.queue.add([*args, f"--count={int(prompts)}", f"--out={folder}"], folder, folder, RUNS)
        gr.Info(f"{folder} is in the queue of the tab Train")

    tab.select(guard(choices), None, [methods, image], show_progress="hidden")
    start.click(guard(add), [methods, image, caption, base, steps, count, name], None, show_progress="hidden")


def pages(root: Path) -> list[str]:
    """Pages beside a table.json, and reports of styles, the newest first."""
    found = [file for file in root.glob("comparisons/*/*.html") if (file.parent / "table.json").is_file()]
    found += root.glob("styles/*/report.html")
    return [file.relative_to(root).as_posix() for file in sorted(found, key=lambda one: -one.stat().st_mtime)]


def framed(file: Path) -> Html:
    """The page in a frame that may run no script."""
    text = html.escape(file.read_text(encoding="utf-8", errors="replace"), quote=True)
    return Html(f'<iframe class="page" sandbox="" title="{html.escape(file.name)}" srcdoc="{text}"></iframe>')
