"""The tab Styles: the style folders of the workspace, what is known of each, and files for other tools."""

import re
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.errors import UserError
from impasto.evaluation.scores import SCORES
from impasto.files import read_json_or_empty
from impasto.report.html import Html, el
from impasto.report.run import read_run
from impasto.report.sections import evaluation_plot
from impasto.report.sections import show as score_text
from impasto.studio.page import Studio, empty, thumbnails
from impasto.styles.metadata import About, read_about
from impasto.styles.parts import read_parts, read_style_json

LAYOUTS = ("diffusers", "kohya", "comfyui")
ADVISED = ("strength", "style_guidance")
FRONT = re.compile(r"\A---\n.*?\n---\n", re.S)


def styles_tab(studio: Studio, tab: gr.Tab) -> None:
    workspace, guard = studio.workspace, studio.guard
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gallery = gr.Gallery(
                label="Styles in the workspace",
                show_label=False,
                columns=4,
                height="auto",
                allow_preview=False,
                object_fit="contain",
                elem_id="styles",
                buttons=[],
            )
            style = gr.Dropdown([], label="Style", elem_id="style")
        with gr.Column(scale=2, min_width=320):
            about = gr.HTML(empty("Choose a style."), elem_id="about-style")
            with gr.Row():
                layout = gr.Dropdown(list(LAYOUTS), value="comfyui", label="Export for", min_width=120)
                export = gr.Button("Export", elem_id="export", min_width=100)
            exported = gr.File(label="Exported file", visible=False, interactive=False, elem_id="exported")
    with gr.Accordion("Model card", open=False):
        card = gr.Markdown()
    names = gr.State([])

    def refresh(name: str | None) -> tuple[Any, Any, list[str], Html, str]:
        found = workspace.styles()
        chosen = name if name in found else next(iter(found), None)
        items = [(str(cover(workspace.root / one)), Path(one).name) for one in found if cover(workspace.root / one)]
        return (gr.update(value=items), gr.update(choices=found, value=chosen), found, *show(chosen))

    def show(name: str | None) -> tuple[Html, str]:
        if name is None:
            return empty("No style yet: train one in the tab Train."), ""
        folder = workspace.existing(name, "styles")
        return style_html(studio, name), card_text(folder)

    def select(event: gr.SelectData, found: list[str]) -> str:
        covered = [one for one in found if cover(workspace.root / one)]
        return covered[event.index]

    def write(name: str | None, kind: str) -> Any:
        from impasto.styles.convert import export_style

        folder = workspace.existing(name, "styles")
        if kind not in LAYOUTS:
            raise UserError(f"unknown format {kind!r}")
        target = workspace.root / "exports" / f"{folder.name}-{kind}.safetensors"
        export_style(folder, kind, target, private=True, overwrite=True)
        return gr.update(value=str(target), visible=True)

    tab.select(guard(refresh), style, [gallery, style, names, about, card], show_progress="minimal")
    style.input(guard(show), style, [about, card], show_progress="hidden")
    gallery.select(select, names, style, show_progress="hidden").then(
        guard(show), style, [about, card], show_progress="hidden"
    )
    export.click(guard(write), [style, layout], exported)


def cover(folder: Path) -> Path | None:
    """The image that stands for a style: its last preview, else its reference."""
    found = [*sorted(folder.glob("previews/step-*-0.png"), reverse=True), *sorted(folder.glob("reference*.png"))]
    return next(iter(found), None)


def card_text(folder: Path) -> str:
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else "This style has no card."
    return re.sub(r"!\[[^\]]*\]\([^)]*\)|<img [^>]*>", "", FRONT.sub("", text))


def style_html(studio: Studio, name: str) -> Html:
    """Reference, previews, scores and what loads a style."""
    folder = studio.workspace.root / name
    try:
        known, kinds = read_about(folder), {part.kind for part in read_parts(folder)}
        sampled, scored = sampling(folder), scores(folder, known)
        curve = evaluation_plot(read_run(folder), 1)
    except UserError as error:
        return el("p", studio.workspace.scrub(str(error)), class_="bad")
    references = [(file, "reference") for file in sorted(folder.glob("reference*.png"))]
    previews = [(file, f"step {int(file.stem.split('-')[1])}") for file in sorted(folder.glob("previews/step-*.png"))]
    rows = facts(known) | sampled | {"loads in": loads_in(kinds)}
    return el(
        "div",
        el("h3", folder.name),
        table(rows),
        thumbnails([*references, *previews[-8:]]),
        *([el("h3", "Scores"), table(scored)] if scored else []),
        *([el("h3", "Scores while it trained"), curve] if curve else []),
        class_="about",
    )


def table(rows: dict[str, str]) -> Html:
    return el("table", *(el("tr", el("th", key, scope="row"), el("td", value)) for key, value in rows.items()))


def facts(known: About) -> dict[str, str]:
    found = {"base": known.base or "not stated", "recipe": str(known.recipe.get("recipe") or "not stated")}
    if steps := known.recipe.get("steps"):
        found["steps"] = str(steps)
    if known.captions:
        found["caption"] = known.captions[0]
    return found


def sampling(folder: Path) -> dict[str, str]:
    """How `style.json` says that the style is sampled, with the scores of that point where the training chose it."""
    content = read_style_json(folder)
    own = {key: value for key, value in (content.get("sampling") or {}).items() if isinstance(value, int | float)}
    if not own:
        return {}
    text = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in own.items())
    grid = (content.get("advice") or {}).get("grid") or []
    best = next((row for row in grid if all(row[key] == own.get(key) for key in ADVISED if key in row)), None)
    return {"sampled with": text if best is None else f"{text} (advised: {two_scores(best)})"}


def scores(folder: Path, known: About) -> dict[str, str]:
    """What `impasto evaluate` measured, in the style folder or else in a folder of images in it."""
    found = known.scores
    for file in sorted(folder.glob("*/scores.json")):
        found = found or read_json_or_empty(file)
    return {SCORES[name].title: score_text(name, found) for name in SCORES if found.get(name) is not None}


def two_scores(row: dict[str, float]) -> str:
    return f"style {row['style']:.3f}, text {row['text']:.3f}"


def loads_in(kinds: set[str]) -> str:
    """The tools that load a style with parts of these kinds: a plain LoRA everywhere, the others by `load_style`."""
    if kinds == {"lora"}:
        return "diffusers as it is; ComfyUI and kohya's tools after an export; impasto.load_style"
    if "lora" in kinds:
        lost = " and ".join(sorted(kinds - {"lora"}))
        return f"impasto.load_style; an export writes its LoRA alone, without {lost}"
    return "impasto.load_style (diffusers with impasto installed)"
