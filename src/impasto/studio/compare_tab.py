"""The tab Compare: pages of comparisons in the workspace."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.errors import UserError
from impasto.report.html import Html
from impasto.studio.page import Studio, empty

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


def pages(root: Path) -> list[str]:
    """Pages beside a table.json, and reports of styles, the newest first."""
    found = [file for file in root.glob("comparisons/*/*.html") if (file.parent / "table.json").is_file()]
    found += root.glob("styles/*/report.html")
    return [file.relative_to(root).as_posix() for file in sorted(found, key=lambda one: -one.stat().st_mtime)]


def framed(file: Path) -> Html:
    """The page in a frame that may run no script."""
    text = html.escape(file.read_text(encoding="utf-8", errors="replace"), quote=True)
    return Html(f'<iframe class="page" sandbox="" title="{html.escape(file.name)}" srcdoc="{text}"></iframe>')
