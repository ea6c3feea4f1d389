"""The tabs Select (candidates of a run) and Concepts (regions over the reference)."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.data.concepts import FILE, Concept, ConceptFile, read_concepts, validate, write_concepts
from impasto.data.references import load
from impasto.errors import UserError
from impasto.files import read_json_or_empty
from impasto.methods.selection import Candidate, list_candidates
from impasto.regions.overlay import overlay
from impasto.report.html import Html, el
from impasto.studio.page import Studio, Task, empty
from impasto.studio.queue import IMAGES, RUNS
from impasto.studio.workspace import slug
from impasto.training.sheet import read_run

COLUMNS = ["phrase", "kind", "left", "top", "right", "bottom"]


def select_tab(studio: Studio, tab: gr.Tab) -> None:
    workspace, guard = studio.workspace, studio.guard
    run = gr.Dropdown([], label="Run with candidates", elem_id="candidate-run")
    about = gr.HTML(empty("Runs of instastyle and styledrop with method.select human stop here for a choice."))
    gallery = gr.Gallery(
        label="Candidates",
        show_label=False,
        columns=5,
        allow_preview=False,
        object_fit="contain",
        height="auto",
        elem_id="candidates",
        buttons=[],
    )
    numbers = gr.CheckboxGroup([], label="Selected", elem_id="numbers")
    go = gr.Button("Go on with these", variant="primary", elem_id="go-on")

    def show(name: str | None) -> tuple[Any, Any, Html]:
        if not name:
            return [], gr.update(choices=[], value=[]), empty("No run with candidates in this workspace.")
        folder = workspace.existing(name, "styles")
        found, need, before = candidates(folder)
        items = [(str(folder / one.file), f"{i} {one.thing}") for i, one in enumerate(found, 1)]
        text = f"Choose at least {need} that have the style and show what they should; the training goes on with them."
        message = el("p", text if not before else f"Selected before: {', '.join(map(str, before))}.", class_="faint")
        choices = [(text, i) for i, (_, text) in enumerate(items, 1)]
        return items, gr.update(choices=choices, value=before), message

    def refresh(name: str | None) -> tuple[Any, ...]:
        found = [
            one for one in workspace.folders("styles") if (workspace.root / one / "state/candidates.json").is_file()
        ]
        chosen = name if name in found else next(iter(found), None)
        return gr.update(choices=found, value=chosen), *show(chosen)

    def toggle(event: gr.SelectData, chosen: list[int]) -> list[int]:
        number = event.index + 1
        return [one for one in chosen if one != number] if number in chosen else sorted([*chosen, number])

    def go_on(name: str | None, chosen: list[int]) -> None:
        folder = workspace.existing(name, "styles")
        _, need, _ = candidates(folder)
        if len(chosen) < need:
            raise UserError(f"{len(chosen)} candidates selected, and the run asks for {need}: choose more")
        studio.queue.add(
            ["select", str(name), *(str(int(one)) for one in sorted(chosen))], str(name), folder.name, RUNS
        )
        gr.Info(f"{folder.name} goes on: see the queue in the tab Train")

    tab.select(guard(refresh), run, [run, gallery, numbers, about], show_progress="hidden")
    run.input(guard(show), run, [gallery, numbers, about], show_progress="hidden")
    gallery.select(toggle, numbers, numbers, show_progress="hidden")
    go.click(guard(go_on), [run, numbers], None, show_progress="hidden")


def candidates(folder: Path) -> tuple[list[Candidate], int, list[int]]:
    """(the candidates, how many are to be selected at least, those selected before)."""
    config, _ = read_run(folder)
    things = read_json_or_empty(folder / "state/candidates.json").get("objects", [])
    before = read_json_or_empty(folder / "state/selection.json").get("selected", [])
    return list_candidates([(str(one), "") for one in things]), config.method.least_selected, list(before)


def concepts_tab(studio: Studio, tab: gr.Tab, timer: gr.Timer) -> None:
    workspace, guard = studio.workspace, studio.guard
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            with gr.Accordion("Find the concepts of a reference", open=True):
                image = gr.Dropdown(
                    [], label="Reference", info="Of those dropped in the tab Train.", elem_id="concept-image"
                )
                caption = gr.Textbox(label="Caption", placeholder="a rocket, a teapot and a lion in flat vector style")
                base = gr.Dropdown(workspace.bases(), value="mini-sd3", allow_custom_value=True, label="Base model")
                find = gr.Button("Find", elem_id="find-concepts")
            task = Task(studio)
            chosen = gr.Dropdown([], label="Concepts", elem_id="concepts")
            table = gr.Dataframe(
                headers=COLUMNS,
                type="array",
                column_count=len(COLUMNS),
                interactive=True,
                label="Regions in pixels",
                elem_id="boxes",
            )
            save = gr.Button("Save", variant="primary", elem_id="save-concepts")
        with gr.Column(scale=3, min_width=320):
            picture = gr.Image(
                label="Regions",
                show_label=False,
                interactive=False,
                elem_id="overlay",
                buttons=["download", "fullscreen"],
            )
            message = gr.HTML()

    def refresh(name: str | None, reference: str | None) -> tuple[Any, ...]:
        found = [one for one in workspace.folders("concepts") if (workspace.root / one / FILE).is_file()]
        images = [
            workspace.relative(file) for file in sorted((workspace.root / "references").iterdir()) if file.is_file()
        ]
        value = name if name in found else next(iter(found), None)
        own = reference if reference in images else next(iter(images), None)
        return gr.update(choices=found, value=value), gr.update(choices=images, value=own), *show(value)

    def show(name: str | None) -> tuple[Any, Any, Html]:
        if not name:
            return None, None, empty("No concepts yet: find those of a reference.")
        found = read_concepts(workspace.existing(name, "concepts") / FILE)
        return rows_of(found), drawn(found), prompts_html(found)

    def start(reference: str | None, text: str, base_name: str) -> int:
        file = workspace.existing(reference, "references")
        if not text.strip():
            raise UserError(
                "no caption: say what the reference shows, as in 'a rocket and a lion in flat vector style'"
            )
        folder = workspace.unused("concepts", slug(file.stem))
        args = ["concepts", "find", str(reference), f"--caption={text}", f"--base={workspace.check_base(base_name)}"]
        return studio.queue.add([*args, f"--out={folder}"], folder, folder, IMAGES)

    def write(name: str | None, rows: list[list[Any]]) -> tuple[Any, Html]:
        file = workspace.existing(name, "concepts") / FILE
        changed = replace(read_concepts(file), concepts=concepts_of(rows))
        validate(changed, str(name))
        write_concepts(file, changed)
        gr.Info(f"{name} is saved")
        return drawn(changed), prompts_html(changed)

    def drawn(found: ConceptFile) -> Any:
        for file in sorted((workspace.root / "references").iterdir()):
            if hashlib.sha256(file.read_bytes()).hexdigest() == found.image_sha256:
                return overlay(load(file).image, found)
        return None

    inputs, outputs = [chosen, image], [chosen, image, table, picture, message]
    tab.select(guard(refresh), inputs, outputs, show_progress="hidden")
    chosen.input(guard(show), chosen, [table, picture, message], show_progress="hidden")
    task.shown_after(find.click(guard(start), [image, caption, base], task.number, show_progress="hidden"))
    save.click(guard(write), [chosen, table], [picture, message])
    seen = gr.State("")

    def tick(number: int | None, before: str, name: str | None, reference: str | None) -> tuple[Any, ...]:
        line, stoppable = task.progress(number)
        job = studio.queue.job(number) if number is not None else None
        if (key := f"{hash(line)}") == before:
            return (*[gr.skip()] * 7, before)
        if job is not None and job.state == "done" and before != key:
            return line, stoppable, *refresh(job.out, reference), key
        return (line, stoppable, *[gr.skip()] * 5, key)

    timer.tick(
        guard(tick), [task.number, seen, *inputs], [task.view, task.button, *outputs, seen], show_progress="hidden"
    )


def rows_of(found: ConceptFile) -> list[list[Any]]:
    """A row for each concept, the box empty for the whole image."""
    return [[one.phrase, one.kind, *(one.box or [""] * 4)] for one in found.concepts]


def concepts_of(rows: list[list[Any]]) -> tuple[Concept, ...]:
    """The concepts of a table as it was edited. Raises UserError naming the row."""
    found = []
    for i, row in enumerate(rows, 1):
        phrase, kind, *sides = [("" if cell is None else str(cell)).strip() for cell in row]
        if not phrase and not any(sides):
            continue
        if kind not in ("thing", "attribute"):
            raise UserError(f"row {i}: the kind is thing or attribute, not {kind!r}")
        try:
            box = tuple(int(float(side)) for side in sides) if any(sides) else None
        except ValueError:
            raise UserError(f"row {i}: a box is four numbers in pixels, or empty for the whole image") from None
        found.append(Concept(phrase, kind, box))  # pyright: ignore[reportArgumentType]
    if not found:
        raise UserError("no concept in the table: name at least one")
    return tuple(found)


def prompts_html(found: ConceptFile) -> Html:
    """What each concept is trained with."""
    lines = [el("li", el("b", one.phrase), f": {found.sub_prompt(one)}") for one in found.concepts]
    return el("div", el("p", f"Style words: {found.style}", class_="faint"), el("ul", *lines), class_="about")
