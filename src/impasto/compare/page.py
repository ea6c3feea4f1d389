"""The page of a comparison: ranking, trade-off curves, table, images of every method beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from impasto.compare.cells import SCORES, Cell, Setting, open_images
from impasto.compare.methods import Method, describe
from impasto.compare.references import ReferenceImage, true_images
from impasto.compare.table import Done
from impasto.config import first_sentence, recipes
from impasto.contact_sheet import sheet
from impasto.data import references
from impasto.evaluation.equal_text import STRENGTHS_TEXT
from impasto.evaluation.table import decimal
from impasto.files import atomic
from impasto.report import plots
from impasto.report.html import Html, el, table, thumbnail
from impasto.report.page import NAME, document

SHOWN = 8
"""Prompts per reference on the page."""
TITLES = {
    "style": "style ↑",
    "text": "text ↑",
    "leakage": "leakage ↓",
    "diversity": "diversity ↑",
    "dino": "DINO ↑",
}


def write_page(
    content: Mapping[str, Any],
    methods: Sequence[Method],
    shown: Sequence[ReferenceImage],
    done: Mapping[str, Done],
    setting: Setting,
) -> None:
    """Write index.html and a grid per reference, `grid.png`, `grid-1.png` and so on, into the comparison's folder.
    content: of table.json."""
    ranked = [row["recipe"] for row in content["rows"]]
    grids = [Grid.of(reference, ranked, done, setting) for reference in shown]
    made = [grid for grid in grids if grid.rows]
    for i, grid in enumerate(made):
        with atomic(setting.out / f"grid{f'-{i}' if i else ''}.png") as file:
            grid.sheet().save(file, "PNG")
    body = (
        hero(content, shown),
        ranking(content),
        trade_off(content),
        score_table(content, methods),
        *(grid.section() for grid in made),
        footer(content),
    )
    with atomic(setting.out / "index.html") as file:
        file.write_text(document(f"{title(content)}{NAME}", *body), encoding="utf-8")


def title(content: Mapping[str, Any]) -> str:
    rows, shown = len(content["rows"]), len(content["references"])
    return f"{rows} method{'s' * (rows > 1)} on {shown} reference{'s' * (shown > 1)}"


def hero(content: Mapping[str, Any], shown: Sequence[ReferenceImage]) -> Html:
    """Title, base, and the references."""
    steps = {n for n in content["steps"].values() if n}
    trained = f", trainings of {' to '.join(str(n) for n in sorted({min(steps), max(steps)}))} steps" if steps else ""
    what = f"Base {content['base']}; the same references, prompts and seeds{trained}."
    images = (thumbnail(references.load(one.image).image, f"reference: {one.caption}") for one in shown)
    figures = (
        el("li", el("figure", image, el("figcaption", one.caption))) for image, one in zip(images, shown, strict=True)
    )
    return el("header", el("h1", title(content)), el("p", what), el("ul", *figures, class_="strip references"))


def ranking(content: Mapping[str, Any]) -> Html:
    """The methods by style at equal text, in words."""
    if content["text"] is None:
        return el("p", f"No cell of {content['reference_row']} is there yet: methods are not ranked.")
    read = [row for row in content["rows"] if row["equal_text"]["reaches"]]
    lost = [row["recipe"] for row in content["rows"] if row["equal_text"]["reaches"] is False]
    items = (el("li", el("b", with_error(row["equal_text"])), el("span", row["recipe"])) for row in read)
    text = f"Style at equal text: each method at the strength where its text is that of {content['reference_row']} "
    text += f"({decimal(content['text'])}); the standard error is over references and seeds."
    none = f"{', '.join(lost)}: no strength of the curve has that much text." if lost else None
    return el(
        "section",
        el("h2", "Style at equal text"),
        el("p", text, class_="faint"),
        el("ol", *items, class_="facts"),
        el("p", none) if none else None,
    )


def with_error(value: Mapping[str, Any] | None, key: str = "style") -> str:
    """ ".62 ± .04", without the error where it is not known; a dash without a value."""
    if value is None or value.get(key) is None:
        return "–"
    error = value.get("error")
    return decimal(value[key]) + (f" ± {decimal(error)}" if error is not None else "")


def trade_off(content: Mapping[str, Any]) -> Html | None:
    """Style against text over strength, a curve per method, its own strength named."""
    curves = {
        row["recipe"]: [p for p in row["curve"] if p["style"] is not None and p["text"] is not None]
        for row in content["rows"]
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    every = [point for points in curves.values() for point in points]
    frame = plots.Frame(
        plots.Axis.over([p["style"] for p in every], "style"), plots.Axis.over([p["text"] for p in every], "text")
    )
    places = {name: [(p["style"], p["text"]) for p in points] for name, points in curves.items()}
    taken = [plots.dot_box(frame, place) for points in places.values() for place in points]
    marks: list[Html] = []
    if content["text"] is not None:
        level = [(frame.x.low, content["text"]), (frame.x.high, content["text"])]
        marks.append(plots.line(frame, level, len(curves), "dashed"))
    for series, (name, points) in enumerate(curves.items()):
        marks.append(plots.line(frame, places[name], series))
        for point, place in zip(points, places[name], strict=True):
            hint = f"{name}, strength {point['strength']:g}: style {decimal(place[0])}, text {decimal(place[1])}"
            label = name if point["factor"] == 1 else ""
            marks.append(plots.dot(frame, place, series, label, hint, taken if label else None))
    note = f"A point per strength ({STRENGTHS_TEXT} times the method's own); its name is at its own strength. "
    note += "Up and to the right is better; dashed: the text at which methods are ranked."
    return el(
        "section",
        el("h2", "Style against text"),
        el("p", note, class_="faint"),
        el("figure", plots.svg(frame, "style against text", *marks), plots.legend(list(curves)), class_="single"),
    )


def score_table(content: Mapping[str, Any], methods: Sequence[Method]) -> Html:
    """Scores at each method's own strength, and what it costs."""
    named = {file: first_sentence(path.read_text(encoding="utf-8")) for file, path in recipes().items()}
    about = {method.name: describe(method, named) for method in methods}
    scores = [name for name in (*SCORES, "dino") if any(name in row["scores"] for row in content["rows"])]
    head = ["", "style at equal text", *(TITLES[name] for name in scores)]
    head += ["training", "per image", "peak memory", "style file"]
    rows = []
    for row in content["rows"]:
        cells = f"{row['cells']} cell{'s' * (row['cells'] != 1)}"
        name = Html(el("span", row["recipe"]) + el("small", f"{about[row['recipe']]} ({cells})"))
        at = row["equal_text"]
        own = "does not reach" if at["reaches"] is False else with_error(at)
        values = [with_error(row["scores"].get(score), "mean") for score in scores]
        costs = [seconds(row["train_seconds"]), seconds(row["seconds_per_image"]), gigabytes(row["peak_memory_gb"])]
        rows.append([name, own, *values, *costs, size(row["bytes"])])
    by = el("ul", *(el("li", f"{name}: {what}") for name, what in content["instruments"].items()), class_="faint")
    note = "Means over cells (reference x seed) at each method's own strength, ± their standard error."
    return el("section", el("h2", "Scores and cost"), el("p", note, class_="faint"), table(head, rows), by)


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} GB"


def size(value: float | None) -> str:
    """Bytes in kB or MB."""
    return "–" if value is None else f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def footer(content: Mapping[str, Any]) -> Html:
    """The command, what was left out, what failed."""
    lines = [f"{name} was left out: {why}" for name, why in content["skipped"].items()]
    lines += [f"failed: {line}" for line in content["failed"]]
    there = sum(row["cells"] for row in content["rows"])
    if there < content["cells"]:
        lines.append(f"{content['cells'] - there} of {content['cells']} cells are missing: the same command runs them")
    command = el("pre", el("code", content["command"])) if content.get("command") else None
    return el("section", el("h2", "How it was made"), *(el("p", line) for line in lines), command)


class Grid:
    """Images of one reference: rows of methods, the true images first where they are known; columns of prompts."""

    def __init__(self, reference: ReferenceImage, rows: Mapping[str, Sequence[Image.Image | None]]) -> None:
        self.reference, self.rows = reference, dict(rows)
        self.prompts = reference.prompts[:SHOWN]

    @classmethod
    def of(cls, reference: ReferenceImage, ranked: Sequence[str], done: Mapping[str, Done], setting: Setting) -> "Grid":
        """From the first seed's cells."""
        rows: dict[str, Sequence[Image.Image | None]] = {}
        for name in ranked:
            cell = first_cell(done.get(name, {}), reference)
            if cell is not None and cell.images(setting.out, 1.0).is_dir():  # results may be kept without images
                rows[name] = open_images(cell, setting, SHOWN)
        truths = true_images(reference) if rows else {}
        if truths:
            rows = {"true": [truths.get(prompt) for prompt in reference.prompts[:SHOWN]], **rows}
        return cls(reference, rows)

    @property
    def columns(self) -> list[str]:
        """The prompts without the style's words."""
        words = self.reference.words
        return [prompt.replace(words, "").strip(" ,.") or prompt if words else prompt for prompt in self.prompts]

    def sheet(self) -> Image.Image:
        """As one image."""
        picture = references.load(self.reference.image).image
        return sheet(self.rows, self.columns, title=self.reference.caption, reference=picture)

    def section(self) -> Html:
        """As a table of images, whose first column stays while it is scrolled."""
        head = el("tr", el("th", ""), *(el("th", column, scope="col") for column in self.columns))
        body = (
            el(
                "tr",
                el("th", name, scope="row"),
                *(
                    el("td", thumbnail(image, f"{name}: {prompt}")) if image is not None else el("td", "–")
                    for image, prompt in zip(images, self.prompts, strict=True)
                ),
            )
            for name, images in self.rows.items()
        )
        grid = el("div", el("table", el("thead", head), el("tbody", *body)), class_="image-grid")
        return el(
            "section", el("h2", self.reference.name), el("p", f"“{self.reference.caption}”", class_="faint"), grid
        )


def first_cell(done: Done, reference: ReferenceImage) -> Cell | None:
    """The reference's cell of the lowest seed."""
    own = [cell for cell, _ in done.values() if cell.reference.sha256 == reference.sha256]
    return min(
        (cell for cell in own if cell.reference.caption == reference.caption), key=lambda c: c.seed, default=None
    )
