"""The tab Noise: noise laws over log-SNR, with where the base decides style."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from impasto.bases import loader
from impasto.calibration.show import Band, band
from impasto.config import TrainConfig, recipes, resolve
from impasto.errors import UserError
from impasto.noise.laws import Law, noise_law, truncate_to_schedule
from impasto.report import plots
from impasto.report.html import Html, el
from impasto.studio.page import Studio, Task
from impasto.studio.queue import RUNS
from impasto.studio.workspace import slug
from impasto.training.plan import latent_positions

LAWS = 4  # colours of the plot that are left beside the band's
LOW, HIGH = -14.0, 8.0


def noise_tab(studio: Studio, tab: gr.Tab, timer: gr.Timer) -> None:
    workspace, guard = studio.workspace, studio.guard
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            base = gr.Dropdown(workspace.bases(), value="mini-sd3", allow_custom_value=True, label="Base model")
            chosen = gr.Dropdown(
                list(recipes()),
                value=["style-friendly-128px", "style-friendly", "sd3-sampler"],
                multiselect=True,
                max_choices=LAWS,
                label="Noise laws of these recipes",
                elem_id="laws",
            )
            gr.Markdown(
                "A law below the shaded band trains where the image is nearly pure noise, a law above it where the "
                "style is decided already. The band is measured by `Measure`, else taken from the paper."
            )
            minutes = gr.Number(
                10,
                minimum=1,
                label="Minutes at most",
                info="Fewer prompts, then fewer noise levels, as far as the time allows; loading counts too.",
                elem_id="minutes",
            )
            measure = gr.Button("Measure where this base decides style", elem_id="measure")
            task = Task(studio)
        with gr.Column(scale=3, min_width=320):
            plot = gr.HTML(elem_id="noise-plot")

    def draw(base_name: str, names: list[str]) -> Html:
        checked = workspace.check_base(base_name)
        file = workspace.root / "calibration" / slug(checked) / "calibration.json"
        configs = [resolve(workspace.check_recipe(name), workspace.local_base(checked)) for name in names[:LAWS]]
        return laws_plot(configs, file if file.is_file() else None, workspace.scrub)

    def start(base_name: str, limit: float | None) -> int:
        checked = workspace.check_base(base_name)
        if not limit or limit <= 0:
            raise UserError("minutes at most: give a number above 0")
        folder = f"calibration/{slug(checked)}"
        args = ["noise", "calibrate", f"--base={checked}", "--size=quick", f"--minutes={limit:g}", f"--out={folder}"]
        return studio.queue.add(args, folder, f"calibration of {checked}", RUNS)

    for event in (tab.select, base.change, chosen.change):
        event(guard(draw), [base, chosen], plot, show_progress="hidden")
    task.shown_after(measure.click(guard(start), [base, minutes], task.number, show_progress="hidden"))
    seen = gr.State("")

    def tick(number: int | None, before: str, base_name: str, names: list[str]) -> tuple[Any, ...]:
        line, stoppable = task.progress(number)
        if (key := f"{hash(line)}") == before:
            return gr.skip(), gr.skip(), gr.skip(), before
        job = studio.queue.job(number) if number is not None else None
        return line, stoppable, draw(base_name, names) if job is not None and job.state == "done" else gr.skip(), key

    timer.tick(
        guard(tick), [task.number, seen, base, chosen], [task.view, task.button, plot, seen], show_progress="hidden"
    )


def laws_plot(configs: list[TrainConfig], calibration: Path | None, scrub: Any) -> Html:
    """Densities of the laws, each scaled to 1, with the band in which style is decided, and the share decided where it
    was measured. Raises UserError."""
    if not configs:
        raise UserError("no recipe is chosen")
    laws = [truncate_to_schedule(noise_law(one), loader.schedule(one.base)) for one in configs]
    where = band(configs[0], calibration, latent_positions(configs[0].data.size, None), None)
    low, high = max(where.low, LOW), min(where.high, HIGH)
    ticks = tuple((float(lam), str(lam)) for lam in range(int(LOW), int(HIGH) + 1, 2))
    frame = plots.Frame(
        plots.Axis(LOW, HIGH, "log-SNR (more noise to the left)", ticks), plots.Axis(0.0, 1.0, "density", ())
    )
    marks = [plots.area(frame, [(low, 1.0), (high, 1.0)], [(low, 0.0), (high, 0.0)], 4)]
    marks += [plots.line(frame, density(law), i) for i, law in enumerate(laws)]
    names = [one.recipe for one in configs]
    if calibration is not None and (points := decided(calibration)):
        marks.append(plots.line(frame, points, 4, "dashed"))
    svg = plots.svg(frame, "noise laws and where style is decided", *marks)
    shares = [
        el("li", f"{one.recipe}: {share(law, where):.0%} of the draws in the band")
        for one, law in zip(configs, laws, strict=True)
    ]
    notes = el("p", f"Shaded: {scrub(where.source).replace('`', '')}.", class_="faint")
    return el("div", svg, plots.legend(names), el("ul", *shares), notes, class_="about")


def density(law: Law) -> list[tuple[float, float]]:
    grid = torch.linspace(LOW, HIGH, 301, dtype=torch.float64)
    heights = law.pdf(grid)
    return list(zip(grid.tolist(), (heights / heights.max().clamp(min=1e-9)).tolist(), strict=True))


def share(law: Law, where: Band) -> float:
    """Of the draws of a law within the band."""
    p = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    lam = law.quantile(p)
    return ((lam >= where.low) & (lam <= where.high)).double().mean().item()


def decided(file: Path) -> list[tuple[float, float]]:
    """(log-SNR, share of the style decided) of a calibration.json."""
    try:
        levels = json.loads(file.read_text(encoding="utf-8"))["levels"]
        return [(row["log_snr"], min(max(row["decided"], 0.0), 1.0)) for row in levels if LOW <= row["log_snr"] <= HIGH]
    except (OSError, ValueError, KeyError, TypeError):
        return []
