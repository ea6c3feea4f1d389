"""What all tabs share: theme, style sheet, small pieces of HTML, messages."""

import base64
import functools
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.data.references import load
from impasto.errors import UserError
from impasto.files import PACKAGE
from impasto.report.html import Html, el
from impasto.studio.queue import RUNNING, WAITING, Job, Queue
from impasto.studio.worker import Worker
from impasto.studio.workspace import Workspace

FONTS = ("system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif")
PLOT_RULES = (
    ".plot",
    ".s0",
    ".curve",
    ".faint-line",
    ".dashed",
    ".bars",
    ".area",
    ".dot",
    ".whisker",
    ".legend",
    ".key",
)


def style_sheet() -> str:
    """CSS of the page, and of the report's plots."""
    own = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    rules = (PACKAGE / "report" / "style.css").read_text(encoding="utf-8").partition("@media (max-width")[0]
    return "\n".join(line for line in rules.splitlines() if line.startswith(PLOT_RULES)) + "\n" + own


def theme() -> gr.themes.Base:
    """Plain colours and fonts of the system: nothing is fetched."""
    look = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_sm,
        font=FONTS,
        font_mono=("ui-monospace", "DejaVu Sans Mono", "monospace"),
    )
    return look.set(
        body_background_fill="#faf8f4",
        body_background_fill_dark="#171613",
        block_background_fill="#fffefb",
        block_background_fill_dark="#201e1a",
        button_primary_background_fill="#2c6e73",
        button_primary_background_fill_hover="#235a5e",
        button_primary_background_fill_dark="#2c6e73",
        button_primary_text_color="#ffffff",
        block_label_text_size="*text_sm",
        block_info_text_color="#6f695f",
        block_info_text_color_dark="#a29a8c",
        block_title_text_color="#24211c",
        block_title_text_color_dark="#ece7dd",
        color_accent="#2c6e73",
        block_title_text_weight="600",
    )


@dataclass(frozen=True)
class Studio:
    """What the tabs work with."""

    workspace: Workspace
    queue: Queue
    worker: Worker

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The handler with a UserError as a message on the page, without paths of this machine."""

        @functools.wraps(function)
        def guarded(*values: Any) -> Any:
            try:
                return function(*values)
            except UserError as error:
                raise gr.Error(self.workspace.scrub(str(error)), duration=12, print_exception=False) from None

        return guarded

    def job_item(self, job: Job) -> Html:
        """A job as a list item: name, state, progress, notes."""
        lines: list[Html] = []
        if job.state == RUNNING:
            status = self.worker.status(job)
            share = {"value": f"{status.share:.4f}", "max": "1"} if status.total else {}
            count = f" {status.done} of {status.total}" if status.total else ""
            name = f"progress of {job.title}"
            lines += [
                el("progress", aria_label=name, **share),
                el("p", f"{status.phase}{count}{f', {status.note}' if status.note else ''}"),
            ]
        if job.ended and job.error and job.state != "stopped":
            lines.append(el("p", job.error, class_="bad"))
        if job.ended and (sheet := job.result.get("sheet")) and job.args[0] == "train":
            lines.append(el("p", f"The candidates are there ({Path(str(sheet)).name}): choose in the tab Select."))
        state = "stopping" if job.stopping else job.state
        top = el("div", el("b", job.title), el("span", f"{state}{seconds(job)}", class_=job.state), class_="top")
        return el("li", top, *(Html(self.workspace.scrub(line)) for line in lines))

    def job_list(self, jobs: Sequence[Job]) -> Html:
        return el("ul", *map(self.job_item, jobs), class_="jobs") if jobs else empty("Nothing in the queue yet.")


def seconds(job: Job) -> str:
    """ ", 75 s" for a job that has begun."""
    if job.started is None or job.state == WAITING:
        return ""
    passed = (job.finished or time.time()) - job.started
    return f", {passed:.0f} s" if passed < 120 else f", {passed / 60:.0f} min"


def empty(text: str) -> Html:
    return el("div", text, class_="empty")


def thumbnails(files: Sequence[tuple[Path, str]]) -> Html:
    """Small images with captions; files that cannot be read are left out."""
    shown = [(thumbnail(file, file.stat().st_mtime_ns), text) for file, text in files if file.is_file()]
    figures = [
        el("figure", el("img", src=source, alt=text), el("figcaption", text)) for source, text in shown if source
    ]
    return el("div", *figures, class_="thumbs")


@functools.lru_cache(maxsize=512)
def thumbnail(file: Path, changed: int, side: int = 256) -> str:
    """A data address of a small WebP; "" for a file that is not an image (or is being written). changed: part of the
    key of the cache."""
    try:
        image = load(file).image
    except UserError:
        return ""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Task:
    """A job that a tab waits for: its number, a line of progress, a button that stops it."""

    def __init__(self, studio: Studio, label: str = "Stop") -> None:
        self.studio = studio
        self.number = gr.State(None)
        self.view = gr.HTML()
        self.button = gr.Button(label, size="sm", variant="stop", visible=False)
        self.button.click(studio.guard(self.stop), self.number, self.view)

    def stop(self, number: int | None) -> Html:
        if number is not None:
            self.studio.worker.stop(number)
        return self.progress(number)[0]

    def shown_after(self, event: Any) -> None:
        """Show the job at once after the event that starts it."""
        event.success(self.progress, self.number, [self.view, self.button], show_progress="hidden")

    def progress(self, number: int | None) -> tuple[Html, Any]:
        """The line, and whether the button is seen."""
        job = self.studio.queue.job(number) if number is not None else None
        if job is None:
            return Html(""), gr.update(visible=False)
        return el("ul", self.studio.job_item(job), class_="jobs"), gr.update(visible=not job.ended)
