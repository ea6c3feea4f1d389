"""The tab Train: references, recipe and settings; the plan; the queue with progress and previews."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from impasto.config import first_sentence, recipes
from impasto.errors import UserError
from impasto.methods.config import InstaStyle, StyleDrop
from impasto.report import plots
from impasto.report.html import Html, el
from impasto.report.run import Run, read_run
from impasto.report.sections import evaluation_plot, loss_plot
from impasto.studio import forms
from impasto.studio.page import Studio, empty, thumbnails
from impasto.studio.queue import RUNNING, RUNS, WAITING, Job
from impasto.training.plan import plan_lines

AXIS_LABELS = {"noise": "Noise law", "objective": "Objective", "adapter": "Adapter", "text": "Text encoders"}
NEWEST = 8  # previews that are shown
ELSEWHERE = {"compare": "Its page is in the tab Compare.", "noise": "What it measured is in the tab Noise."}
STAGES = (InstaStyle.TRAINED_IN, StyleDrop.TRAINED_IN, "round-1")
"""Folders in a run that trains in stages, the last one first."""
NO_PLAN = "The plan appears here: images, captions, noise levels, time and memory."
WATCHED = (
    "With `evaluate.every`, eight fixed prompts are generated every so many steps and scored for style and text. Of "
    "the checkpoints whose text is within the margin of the best, the one with the most style becomes the style; with "
    "`evaluate.patience` the training stops early. Off by default, since each evaluation takes time."
)


def train_tab(studio: Studio, timer: gr.Timer) -> None:
    workspace, guard = studio.workspace, studio.guard
    images = gr.State([])
    written = gr.State({})  # {key of a component: what a person wrote there}, see `remember`
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            drop = gr.File(
                label="Drop reference images here, or click to choose",
                file_count="multiple",
                file_types=["image"],
                height=140,
                elem_id="drop",
            )
            base = gr.Dropdown(
                workspace.bases(),
                value="mini-sd3",
                allow_custom_value=True,
                label="Base model",
                info="One of the list, or a hub id owner/name.",
                elem_id="base",
            )
            recipe = gr.Dropdown(list(recipes()), value="style-friendly-128px", label="Recipe", elem_id="recipe")
            about = gr.Markdown(describe_recipe("style-friendly-128px"))
            with gr.Accordion("Other parts than the recipe's", open=False):
                axes = [
                    gr.Dropdown([("the recipe's", ""), *forms.axis_choices(axis)], value="", label=AXIS_LABELS[axis])
                    for axis in forms.SELECTED
                ]
        with gr.Column(scale=2, min_width=320):
            plan_view = gr.HTML(empty(NO_PLAN), elem_id="plan")
    form_area = gr.Column()
    gr.Markdown("### Queue")
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            jobs_view = gr.HTML(elem_id="jobs")
            chosen = gr.Dropdown([], label="Run", elem_id="run")
            with gr.Row():
                stop = gr.Button("Stop", size="sm", min_width=80, elem_id="stop")
                resume = gr.Button("Resume", size="sm", min_width=80, elem_id="resume")
                delete = gr.Button("Delete", size="sm", variant="stop", min_width=80, elem_id="delete")
        with gr.Column(scale=3, min_width=320):
            details = gr.HTML(empty("Choose a run to see its loss and previews."), elem_id="details")

    def upload(files: list[str] | None, before: list[str]) -> tuple[list[str], None]:
        added, errors = [], []
        for file in files or []:
            try:
                added.append(workspace.add_reference(Path(file), Path(file).name))
            except UserError as error:
                errors.append(workspace.scrub(str(error)))
        for error in errors:
            gr.Warning(error, duration=12)
        return [*before, *added], None

    drop.upload(guard(upload), [drop, images], [images, drop])
    recipe.change(describe_recipe, recipe, about, show_progress="hidden")
    for chosen_part in (base, recipe, *axes):  # the plan was another one's
        chosen_part.change(lambda: empty(NO_PLAN), None, plan_view, show_progress="hidden")

    def own_recipe(base: str) -> str:
        from impasto.config import default_recipe

        return default_recipe(workspace.local_base(workspace.check_base(base)))

    base.change(guard(own_recipe), base, recipe, show_progress="hidden")

    with form_area:

        @gr.render(inputs=[written, images, base, recipe, *axes], show_progress="hidden")
        def form(own: dict[str, Any], names: list[str], base_name: str, recipe_name: str, *axis_names: str) -> None:
            selected: dict[str, str] = dict(zip(forms.SELECTED, axis_names, strict=True))
            try:
                checked = workspace.check_recipe(recipe_name), workspace.check_base(base_name)
                config = forms.config_of(checked[0], workspace.local_base(checked[1]), selected)
                main, more = forms.form_fields(config)
            except UserError as error:
                gr.HTML(el("p", workspace.scrub(str(error)), class_="bad"))
                return
            texts = []
            for name in names:
                with gr.Row(equal_height=False):
                    with gr.Column(scale=0, min_width=128):
                        gr.HTML(thumbnails([(workspace.inside(name, "references"), Path(name).name)]))
                    with gr.Column(min_width=220):
                        caption = own.get(f"caption {name}", forms.caption_of(name))
                        text = gr.Textbox(
                            caption,
                            label=f"Caption of {Path(name).name}",
                            key=f"caption {name}",
                            elem_classes="caption",
                            interactive=True,
                        )
                        remember(text, written, forms.caption_of(name))
                        advice = gr.Markdown(forms.caption_advice(caption), key=f"advice {name}", elem_classes="faint")
                        text.change(forms.caption_advice, text, advice, show_progress="hidden")
                        remove = gr.Button("Remove", size="sm", key=f"remove {name}")
                    texts.append(text)
                    remove.click(lambda now, gone=name: [one for one in now if one != gone], images, images)
            out = gr.Textbox(
                own.get("name", ""),
                label="Name of the style",
                placeholder="after the first image",
                key="name",
                elem_id="name",
                interactive=True,
            )
            remember(out, written, "")
            method = forms.axis_name(config, "method")
            concepts = gr.Dropdown(
                ["", *workspace.folders("concepts")],
                value="",
                interactive=True,
                label="Concepts",
                visible=method == "finestyle",
                info="Edited in the tab Concepts; found again when none is chosen.",
            )
            with gr.Row():
                boxes = [field_box(one, recipe_name, config.optim.steps, written, own) for one in main]
            watched = [one for one in more if one.path.startswith("evaluate.")]
            more = [one for one in more if one not in watched]
            with gr.Accordion("Watch the score while training", open=False):
                gr.Markdown(WATCHED, elem_classes="faint")
                with gr.Row():
                    boxes += [field_box(one, recipe_name, config.optim.steps, written, own) for one in watched]
            with gr.Accordion("More settings", open=False), gr.Row():
                boxes += [field_box(one, recipe_name, config.optim.steps, written, own) for one in more]
            with gr.Row():
                show = gr.Button("Show the plan", elem_id="show-plan")
                start = gr.Button("Train", variant="primary", elem_id="start")

            def command(*values: Any) -> list[str]:
                captions, (name, concept), given = (
                    values[: len(names)],
                    values[len(names) : len(names) + 2],
                    values[len(names) + 2 :],
                )
                if not names:
                    raise UserError("no reference image: drop one first")
                for caption in captions:
                    if "..." in caption:
                        raise UserError(f"the caption {caption!r} still has its dots: write the words for the style")
                changed = forms.changes([*main, *watched, *more], given)
                folder = workspace.new("styles", name) if name else workspace.unused("styles", Path(names[0]).stem)
                concept_file = (
                    f"{workspace.relative(workspace.existing(concept, 'concepts'))}/concepts.json" if concept else ""
                )
                forms.config_of(recipe_name, workspace.local_base(checked[1]), selected, **changed)
                images_here = [workspace.relative(workspace.existing(one, "references")) for one in names]
                return forms.train_args(
                    recipe_name, checked[1], selected, changed, images_here, captions, folder, concept_file
                )

            def plan(*values: Any) -> Html:
                try:
                    args = command(*values)
                    return plan_html(studio.worker.call([*args, "--dry-run"]), args, workspace.scrub)
                except UserError as error:
                    return el("div", workspace.scrub(str(error)), class_="empty bad")

            def add(*values: Any) -> Any:
                args = command(*values)
                folder = args[-1].removeprefix("--out=")
                if any(job.out == folder and not job.ended for job in studio.queue.jobs()):
                    raise UserError(f"{folder} is in the queue already: give the style another name")
                number = studio.queue.add(args, folder, Path(folder).name, RUNS)
                gr.Info(f"{Path(folder).name} is in the queue")
                return gr.update(choices=run_choices(studio), value=number)

            inputs = [*texts, out, concepts, *boxes]
            show.click(plan, inputs, plan_view)
            start.click(guard(add), inputs, chosen, show_progress="hidden")

    shown = gr.State("")

    def refresh(number: int | None, before: str) -> tuple[Any, Any, Any, str]:
        jobs = studio.queue.jobs(RUNS)
        job = next((one for one in jobs if one.id == number), None) or next(iter(jobs), None)
        listed, details = studio.job_list(jobs), details_html(studio, job)
        if (key := f"{hash((listed, details))} {[one.id for one in jobs]} {job.id if job else ''}") == before:
            return gr.skip(), gr.skip(), gr.skip(), before
        choice = gr.update(choices=run_choices(studio), value=job.id if job else None)
        return listed, choice, details, key

    outputs = [jobs_view, chosen, details, shown]
    timer.tick(refresh, [chosen, shown], outputs, show_progress="hidden")
    chosen.change(refresh, [chosen, shown], outputs, show_progress="hidden")

    def act(number: int | None, what: str) -> None:
        if number is None or (job := studio.queue.job(number)) is None:
            raise UserError("no run is chosen")
        if what == "stop":
            if job.ended:
                raise UserError(f"{job.title} has ended already")
            studio.worker.stop(number)
        elif what == "resume":
            if not studio.queue.requeue(number):
                raise UserError(f"{job.title} is {job.state}: only a run that has ended can be started again")
        elif not studio.worker.delete(number):
            raise UserError(f"{job.title} is running: stop it first")

    for button, what in ((stop, "stop"), (resume, "resume"), (delete, "delete")):
        clicked = button.click(guard(lambda number, what=what: act(number, what)), chosen, None, show_progress="hidden")
        clicked.then(refresh, [chosen, shown], outputs, show_progress="hidden")


def remember(component: Any, written: gr.State, default: Any) -> None:
    """Keep what a person writes there, so that it is still there when the form is drawn again: a change of base, recipe
    or images draws it again, and gradio's `preserved_by_key` does not keep values (6.31, its issue 12788).

    The dict of `written` is changed in place: two fields may be written at once. default: what is there otherwise.
    """

    def keep(value: Any, own: dict[str, Any], key: str = component.key) -> None:
        if value == default:
            own.pop(key, None)
        else:
            own[key] = value

    component.change(keep, [component, written], None, queue=False, show_progress="hidden")


def field_box(field: forms.Field, recipe: str, steps: int, written: gr.State, own: dict[str, Any]) -> Any:
    """The component of a setting, with what was written there before. steps: of the run, for previews on its way where
    the recipe asks for none. own: what `written` holds."""
    key = f"{recipe} {field.path}"
    common: dict[str, Any] = {"label": field.label, "info": field.help, "key": key, "min_width": 220}
    common |= {"interactive": True, "elem_id": "set-" + field.path.replace(".", "-").replace("_", "-")}
    default: Any = field.value
    if field.kind not in ("flag", "choice") and field.optional:  # an empty number would be shown as 0
        default = "" if field.value is None else field.value if field.kind == "text" else f"{field.value:g}"
    elif field.path == "log.preview_every" and not field.value:
        default = max(1, steps // forms.PREVIEWS)
    value = own.get(key, default)
    if field.kind == "flag":
        box: Any = gr.Checkbox(value, **common)
    elif field.kind == "choice":
        choices = [*([("default", "")] if field.optional else []), *((one, one) for one in field.choices)]
        box = gr.Dropdown(choices, value=value, **common)
    elif field.optional:
        box = gr.Textbox(value, placeholder="default", **common)
    elif field.kind in ("number", "integer"):
        box = gr.Number(value, precision=0 if field.kind == "integer" else None, **common)
    else:
        box = gr.Textbox(value, lines=2 if field.kind == "lines" else 1, **common)
    remember(box, written, default)
    return box


def describe_recipe(name: str) -> str:
    file = recipes().get(name)
    return f"{first_sentence(file.read_text(encoding='utf-8'), None)}." if file else ""


def run_choices(studio: Studio) -> list[tuple[str, int]]:
    return [(f"{job.title} ({job.state})", job.id) for job in studio.queue.jobs(RUNS)]


def plan_html(plan: dict[str, Any], args: list[str], scrub: Any) -> Html:
    """The plan of `--dry-run`: its lines, warnings, the noise histogram, and the command line."""
    lines = scrub(plan_lines(plan)).splitlines()
    warned = [el("p", scrub(line), class_="bad") for line in plan.get("warnings", ())]
    return el(
        "div",
        el("pre", "\n".join(lines)),
        *warned,
        noise_bars(plan["noise"]),
        el("p", "The same on the command line, in the workspace:", class_="faint"),
        el("pre", forms.command_line(args, shlex.quote)),
        class_="plan",
    )


def noise_bars(noise: dict[str, Any]) -> Html:
    """The histogram of a law's log-SNR as a plot."""
    own = noise["log_snr"]
    step = (own["high"] - own["low"]) / len(own["shares"])
    edges = [own["low"] + i * step for i in range(len(own["shares"]) + 1)]
    frame = plots.Frame(
        plots.Axis.over([edges[0], edges[-1]], "log-SNR (more noise to the left)"),
        plots.Axis.over([0.0, *own["shares"]], "share of draws"),
    )
    return plots.svg(frame, "noise levels that are trained", plots.bars(frame, edges, own["shares"], 0))


def details_html(studio: Studio, job: Job | None) -> Html:
    """A run's loss, scores, previews and notes."""
    if job is None:
        return empty("Choose a run to see its loss and previews.")
    folder = studio.workspace.root / job.out
    run = run_of(folder)
    parts: list[Html] = [el("h3", job.title)]
    if curves := [plot for plot in (loss_plot(run, 0), evaluation_plot(run, 1)) if plot]:
        parts.append(el("div", *curves, class_="curves"))
    files = preview_files(folder)
    if files:
        parts += [el("h3", "Previews"), thumbnails(files)]
    if not run.metrics and not files:
        place = ELSEWHERE.get(job.args[0], "It has left no metrics.")
        parts.append(empty("Nothing to see yet." if job.state in (RUNNING, WAITING) else place))
    notes = studio.worker.status(job).notes
    parts += [el("p", studio.workspace.scrub(note)) for note in notes]
    return el("div", *parts, class_="about")


def run_of(folder: Path) -> Run:
    """The files of a run, of several stages those of its last training; without rows where it has not begun."""
    for stage in (folder, *(folder / name for name in STAGES)):
        try:
            run = read_run(stage)
        except UserError:
            continue
        if run.metrics or run.evaluations:
            return replace(run, folder=folder)
    return Run(folder, "", {}, [], "", None)


def preview_files(folder: Path) -> list[tuple[Path, str]]:
    """The newest previews with their steps; of a run of several stages the candidates."""
    found = sorted(folder.glob("previews/step-*.png"), reverse=True)
    base = [(file, "the base alone") for file in sorted(folder.glob("previews/base/*.png"))]
    if not found:
        return base or [
            (file, f"candidate {file.stem}") for file in sorted(folder.glob("candidates/[0-9]*.png"))[: 2 * NEWEST]
        ]
    return [(file, f"step {int(file.stem.split('-')[1])}") for file in found[:NEWEST]]
