"""The sections of the page, as functions that return `Html`, or None if there is nothing to show."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from PIL import Image

from impasto.config import EvaluateConfig
from impasto.evaluation.encoder_scores import SCORES as BY_ENCODER
from impasto.evaluation.scores import SCORES
from impasto.evaluation.table import decimal, percent
from impasto.noise.laws import Law, Truncated, UniformTime
from impasto.report import plots
from impasto.report.html import Html, el, picture, table
from impasto.report.markdown import render, shorten_paths
from impasto.report.run import Gallery, Run, finite
from impasto.training.watch import choose

Scores = Mapping[str, Any]
Encoders = Mapping[str, Mapping[str, Any]]
"""The part "encoders" of scores.json: {encoder: {"source", "version", "about", "scores"}}."""


def hero(run: Run, scores: Scores, title: str, notes: Sequence[str] = ()) -> Html:
    """The header: reference with caption, main scores, notes."""
    caption = shorten_paths(run.caption or "no caption")
    figure = None
    if run.reference is not None:
        figure = el("figure", picture(run.reference, f"reference: {caption}"), el("figcaption", f"“{caption}”"))
    steps = run.metrics[-1]["step"] if run.metrics else run.key("steps")
    facts = [(show(name, scores), SCORES[name].title) for name in ("style_accuracy", "concept_top5", "leakage")]
    if finite(scores.get("reference_style")):
        facts.insert(0, (f"{percent(scores['reference_style'])} %", "style of the reference"))
    facts = [fact for fact in facts if fact[0] != "–"]
    what = f"Base {shorten_paths(str(run.key('base') or 'unknown'))}."
    if run.recipe_text:
        facts.append((str(steps or "–"), "training steps"))
        what = shorten_paths(f"Recipe {run.key('recipe') or 'unknown'}, base {run.key('base') or 'unknown'}.")
    elif run.key("rank"):
        facts.append((str(run.key("rank")), "rank"))
    items = (el("li", el("b", value), el("span", label)) for value, label in facts)
    below = (el("p", note) for note in notes)
    words = el("div", el("h1", title), el("p", what), el("ul", *items, class_="facts"), *below)
    return el("header", figure, words, class_="hero")


TICK = "✓: the concept judge ranks the prompt's object among the first five."
BELOW = " Below: the style judge's top style."


def gallery(galleries: Sequence[Gallery], truths: Mapping[str, Image.Image]) -> Html | None:
    """A card per image of the first gallery: true image, base, other galleries, the image itself."""
    if not galleries[0].samples:
        return None
    pictures = len(galleries) + bool(truths)
    cards = (_card(galleries, i, truths) for i in range(len(galleries[0].samples)))
    styled = any(row.get("style_judged") for one in galleries for row in one.scores.get("images", []))
    width = f"--card-width: {max(190, 104 * pictures)}px"
    return el(
        "section",
        el("h2", "Pictures"),
        el("p", TICK + (BELOW if styled else ""), class_="faint") if any(one.scores for one in galleries) else None,
        el("ul", *cards, class_="cards", style=width),
    )


def _card(galleries: Sequence[Gallery], index: int, truths: Mapping[str, Image.Image]) -> Html:
    first = galleries[0].samples[index]
    concept = galleries[0].row(index).get("concept") or ""
    figures = [_figure(picture(truths[concept], f"{concept}, true"), "true", {})] if concept in truths else []
    for one in sorted(galleries, key=lambda one: (one.name != "base", one is galleries[0])):
        if index < len(one.samples):
            sample = one.samples[index]
            image = picture(sample.path, f"{one.name}: {sample.prompt or sample.path.name}")
            figures.append(_figure(image, one.name, one.row(index)))
    heading = concept or first.prompt or first.path.name
    below = el("p", first.prompt) if first.prompt and first.prompt != heading else None
    return el("li", el("h3", heading), el("div", *figures, class_="row"), below)


def _figure(image: Html, name: str, row: Mapping[str, Any]) -> Html:
    tick = el("span", " ✓", class_="hit") if row.get("concept_top5") else None
    style = el("span", f" {row['style_judged']}", class_="said") if row.get("style_judged") else None
    return el("figure", image, el("figcaption", name, tick, el("br") if style else None, style))


def show(name: str, scores: Scores | None) -> str:
    """A score as text, a dash if unknown."""
    value = None if scores is None else scores.get(name)
    if value is None:
        return "–"
    return f"{percent(value)} %" if SCORES[name].percent else decimal(value)


def score_table(columns: Mapping[str, Scores | None], by: str = "") -> Html | None:
    """The known scores with 95 % intervals, a column per gallery and for base and true images. by: what scored."""
    known = {heading: scores for heading, scores in columns.items() if scores}
    rows = []
    for name, score in SCORES.items():
        if any(scores.get(name) is not None for scores in known.values()):
            arrow = {"lower": " ↓", "higher": " ↑"}.get(score.better, "")
            head = Html(el("span", score.title + arrow) + el("small", score.what))
            rows.append([head, *(_cell(name, scores) for scores in known.values())])
    if not rows:
        return None
    caption = "Means over the images; small print: 95 % intervals (Wilson for shares, bootstrap otherwise)."
    if {"unrelated", "reference"} <= known.keys():
        caption += " unrelated: images that have nothing to do with the reference; reference: crops of itself."
    caption += f" {by}" if by else ""
    return el("section", el("h2", "Scores"), el("p", caption, class_="faint"), table(["", *known], rows))


def _cell(name: str, scores: Scores) -> str:
    interval = (scores.get("interval") or {}).get(name)
    if scores.get(name) is None or not interval:
        return show(name, scores)
    form = percent if SCORES[name].percent else decimal
    return Html(el("span", show(name, scores)) + el("small", f"{form(interval[0])} to {form(interval[1])}"))


def encoder_table(columns: Mapping[str, Encoders]) -> Html | None:
    """Scores by further encoders with 95 % intervals: a row per encoder, version and score, a column per set of images.

    columns: {heading: "encoders" of its scores.json}.
    """
    known = {heading: encoders for heading, encoders in columns.items() if encoders}
    rows: dict[tuple[str, str, str], list[str]] = {}
    for encoders in known.values():
        for name, own in encoders.items():
            for score, found in own["scores"].items():
                key = (name, own["version"], score)
                if key not in rows and found["mean"] is not None:
                    cells = (_encoder_cell(one.get(name), *key[1:]) for one in known.values())
                    rows[key] = [_encoder_head(own, *key), *cells]
    if not rows:
        return None
    caption = "Means over the images, 95 % intervals. The version is the start of the sha256 of the weights."
    table_ = table(["", *known], list(rows.values()))
    return el("section", el("h2", "Scores by encoders"), el("p", caption, class_="faint"), table_)


def _encoder_head(own: Mapping[str, Any], name: str, version: str, score: str) -> Html:
    known = BY_ENCODER.get(score)
    about = [known.what if known else "", own["about"], shorten_paths(own["source"]), f"version {version}"]
    title = el("span", f"{name}, {known.title if known else score}")
    return Html(title + el("small", "; ".join(part for part in about if part)))


def _encoder_cell(own: Mapping[str, Any] | None, version: str, score: str) -> str:
    found = own["scores"].get(score) if own is not None and own["version"] == version else None
    if found is None or found["mean"] is None:
        return "–"
    low, high = found["interval"] or (found["mean"], found["mean"])
    return Html(el("span", decimal(found["mean"])) + el("small", f"{decimal(low)} to {decimal(high)}"))


def votes_table(summary: Mapping[str, Any] | None) -> Html | None:
    """Win, tie and lose of each pair of methods and question, see `evaluation.votes.summary`."""
    if summary is None or not summary["comparisons"]:
        return None
    rows = []
    for one in summary["comparisons"]:
        what = f"{one['question']}; {one['votes']} votes on {one['pairs']} pairs"
        head = Html(el("span", f"{one['method']} against {one['other']}") + el("small", what))
        rows.append([head, *(_share_cell(one[name]) for name in ("win", "tie", "lose"))])
    counts = {name: f"{summary[name]} {name if summary[name] != 1 else name[:-1]}" for name in ("votes", "raters")}
    caption = f"Blind votes: {counts['votes']} of {counts['raters']}. Shares of the votes, and 95 % intervals (Wilson)."
    head = ["", "win", "tie", "lose"]
    return el("section", el("h2", "Votes"), el("p", caption, class_="faint"), table(head, rows))


def _share_cell(share: Mapping[str, Any]) -> Html:
    low, high = map(percent, share["interval"])
    return Html(el("span", f"{percent(share['share'])} %") + el("small", f"{low} to {high}"))


def trade_off(strengths: Mapping[str, Any]) -> Html | None:
    """Style accuracy against concept top-5 over adapter strength: a curve per run; points of base and true images."""
    curves = {name: rows for name, rows in strengths.items() if isinstance(rows, list) and rows}
    if not curves:
        return None
    ticks = tuple((share / 100, str(share)) for share in range(0, 101, 20))
    frame = plots.Frame(
        plots.Axis(0.0, 1.0, "style accuracy, %", ticks), plots.Axis(0.0, 1.0, "concept top-5, %", ticks)
    )
    marks: list[Html] = []
    points = {name: row for name in ("base", "true") if isinstance(row := strengths.get(name), dict) and placed(row)}
    taken = [plots.dot_box(frame, _place(row)) for row in (*chain(*curves.values()), *points.values()) if placed(row)]
    for series, rows in enumerate(curves.values()):
        known = list(filter(placed, rows))
        marks.append(plots.line(frame, [_place(row) for row in known], series))
        marks += [_point(frame, row, series, f"{row['strength']:g}", taken) for row in known]
    names = list(curves)
    for name, row in points.items():
        marks.append(_point(frame, row, len(names), name, taken))
        names.append(name)
    return el(
        "section",
        el("h2", "Style against content"),
        el("p", "Each point is one adapter strength on the same prompts and seeds; up and to the right is better."),
        el("figure", plots.svg(frame, "style against content", *marks), plots.legend(names), class_="single"),
    )


def placed(row: Mapping[str, Any]) -> bool:
    """Whether both coordinates are known."""
    return row.get("style_accuracy") is not None and row.get("concept_top5") is not None


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["style_accuracy"], row["concept_top5"]


def _point(frame: plots.Frame, row: Mapping[str, Any], series: int, label: str, taken: list[plots.Box]) -> Html:
    spans = row.get("interval") or {}
    hint = f"{label}: style {show('style_accuracy', row)}, concept top-5 {show('concept_top5', row)}"
    thin = Html("")
    if spans.get("style_accuracy") and spans.get("concept_top5"):
        thin = plots.whiskers(frame, _place(row), spans["style_accuracy"], spans["concept_top5"], series)
    return Html(thin + plots.dot(frame, _place(row), series, label, hint, taken))


def loss_plot(run: Run, series: int) -> Html | None:
    """The loss per step and its moving mean over a tenth of the run."""
    if len(run.metrics) < 2:
        return None
    steps, losses = [row["step"] for row in run.metrics], [row["loss"] for row in run.metrics]
    window = max(2, len(losses) // 10)
    # the axis ends at the 98th percentile, since single large losses would flatten the curve
    top = sorted(losses)[min(len(losses) - 1, int(0.98 * len(losses)))]
    shown = [min(loss, top) for loss in losses]
    frame = plots.Frame(plots.Axis.over(steps, "step"), plots.Axis.over([0.0, top], f"loss ({loss_name(run)})"))
    marks = (
        plots.line(frame, list(zip(steps, shown, strict=True)), series, "faint-line"),
        plots.line(frame, list(zip(steps, plots.smooth(shown, window), strict=True)), series),
    )
    caption = f"{run.title}: loss per step, and its mean over {window} steps."
    return el("figure", plots.svg(frame, caption, *marks), el("figcaption", caption))


def evaluation_plot(run: Run, series: int) -> Html | None:
    """Style and text of a run's evaluations over steps, the chosen step marked."""
    rows = run.evaluations
    if not rows:
        return None
    margin = run.key("margin")
    chosen = choose(rows, EvaluateConfig.margin if margin is None else margin)
    frame = plots.Frame(
        plots.Axis.over([0.0, *(row["step"] for row in rows)], "step"),
        plots.Axis.over([0.0, *(row[name] for row in rows for name in ("style", "text"))], "score"),
    )
    marks: list[Html] = []
    for i, name in enumerate(("style", "text")):
        points = [(float(row["step"]), row[name]) for row in rows]
        marks.append(plots.line(frame, points, series + i))
        marks += [
            plots.dot(frame, point, series + i, hint=f"step {point[0]:g}: {name} {point[1]:.3f}") for point in points
        ]
    at = [(float(chosen["step"]), frame.y.low), (float(chosen["step"]), frame.y.high)]
    marks.append(plots.line(frame, at, series, "dashed"))
    marks += [
        plots.note(frame, (float(rows[-1]["step"]), rows[-1][n]), n, series + i)
        for i, n in enumerate(("style", "text"))
    ]
    caption = f"{run.title}: style (cosine with the reference) and text (by the base) on fixed prompts; step "
    caption += f"{chosen['step']} was chosen: the most style with text within the margin of the best."
    return el("figure", plots.svg(frame, caption, *marks), el("figcaption", caption))


LOSSES = {"denoise": "mean squared error", "dco": "DCO"}


def loss_name(run: Run) -> str:
    """The loss of a run in words: objective, weighting and prior weight."""
    objective, weighting, prior = (run.key(name) for name in ("objective", "weighting", "prior_weight"))
    name = LOSSES.get(objective or "denoise", str(objective))
    weighted = f"weighted {name}" if weighting not in (None, "none") else name
    return f"{weighted} + {prior:g} × prior" if prior else weighted


def noise_plot(run: Run, law: Law | None, series: int) -> Html | None:
    """Histogram of a run's noise levels with the law's density; log-SNR axis below, sigma above."""
    drawn = [lam for row in run.metrics for lam in row.get("lam") or ()]
    if not drawn:
        return None
    low, high = -16.0, 8.0
    edges, heights = plots.density(drawn, low, high, 24)
    pdf = [] if law is None else density(law, low, high)
    peak = max([*heights, *(y for _, y in pdf)])
    ticks = tuple((float(v), f"{v}") for v in range(-16, 9, 4))
    frame = plots.Frame(
        plots.Axis(low, high, "log-SNR λ (more noise to the left)", ticks), plots.Axis.over([0.0, peak], "density")
    )
    sigmas = tuple((2 * math.log((1 - sigma) / sigma), f"{sigma:g}") for sigma in SIGMAS)
    above = plots.Axis(low, high, "σ = share of noise (rectified flow)", sigmas)
    marks = [plots.bars(frame, edges, heights, series)]
    if pdf:
        marks.append(plots.line(frame, pdf, series))
    caption = f"{run.title}: {len(drawn):,} noise levels drawn" + (", and the law's density." if pdf else ".")
    return el("figure", plots.svg(frame, caption, *marks, above=above), el("figcaption", caption))


def density(law: Law, low: float, high: float) -> list[tuple[float, float]]:
    """Points of a law's density on [low, high], with vertical edges at its bounds."""
    first, last = -math.inf, math.inf
    if isinstance(law, Truncated):
        first, last = law.low, law.high
    elif isinstance(law, UniformTime):
        first, last = law.schedule.range
    first, last = (min(max(end, low), high) for end in (first, last))
    inside = plots.curve(lambda lam: law.pdf(torch.tensor([min(lam, last)], dtype=torch.float64)).item(), first, last)
    return [(low, 0.0), (first, 0.0)] * (first > low) + inside + [(last, 0.0), (high, 0.0)] * (last < high)


SIGMAS = (0.9995, 0.997, 0.98, 0.9, 0.5, 0.1, 0.03)


def training(runs: Sequence[tuple[Run, Law | None]]) -> Html | None:
    """Loss curves and noise histograms of all runs."""
    figures = [plot for i, (run, _) in enumerate(runs) if (plot := loss_plot(run, i))]
    figures += [plot for i, (run, _) in enumerate(runs) if (plot := evaluation_plot(run, i))]
    figures += [plot for i, (run, law) in enumerate(runs) if (plot := noise_plot(run, law, i))]
    if not figures:
        return None
    note = "A loss at low noise and a loss at high noise are different quantities: compare its course, not its height."
    return el("section", el("h2", "Training"), el("p", note, class_="faint"), el("div", *figures, class_="plots"))


def usage(run: Run) -> Html | None:
    """The code block of the model card, for plain diffusers."""
    block = re.search(r"```python\n(.*?)```", run.card, re.DOTALL)
    if block is None:
        return None
    return el("section", el("h2", "Use it in plain diffusers"), el("pre", el("code", shorten_paths(block[1]))))


def papers(run: Run) -> Html | None:
    """The resolved recipe and the model card, without absolute paths."""
    parts = []
    if run.recipe_text:
        parts += [el("h2", "Recipe"), el("pre", el("code", shorten_paths(run.recipe_text)))]
    if run.card:
        parts += [el("h2", "Model card"), el("div", render(shorten_paths(run.card)), class_="card")]
    return el("section", *parts) if parts else None


def notes(lines: Sequence[str]) -> Html | None:
    """The notes of the evaluations, without duplicates."""
    unique = list(dict.fromkeys(lines))
    return el("ul", *(el("li", line) for line in unique), class_="faint") if unique else None
