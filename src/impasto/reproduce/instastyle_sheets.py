"""Pictures of InstaStyle's claims from the cells' images on this machine: mixtures, limits, a point per reference."""

import io
import json
from collections.abc import Mapping
from statistics import mean
from typing import TYPE_CHECKING, Any

from PIL import Image

from impasto.contact_sheet import sheet
from impasto.evaluation.scores import SCORES
from impasto.generation import GRID, LINE
from impasto.report import plots
from impasto.reproduce.instastyle_world import TRIO
from impasto.reproduce.sheets import images_of

if TYPE_CHECKING:
    from impasto.reproduce.campaign import Campaign

LOST = 6
"""Images of one reference on the sheet of limits."""


def mixtures(campaign: "Campaign", size: str) -> dict[str, bytes]:
    """Of the first pair and prompt: alpha x beta, the line, and the first style with each of the others."""
    found = {}
    columns = {"grid": [f"beta {b:g}" for b in GRID], "line": [f"{a:g}" for a in LINE]}
    columns["several"] = [" + ".join(str(i + 1) for i, w in enumerate(weights) if w) for weights in TRIO]
    for arm, heads in columns.items():
        for cell in campaign.cells_of(arm, size)[:1] if arm in campaign.specs else []:
            folder, n = images_of(cell), cell.spec["count"]
            if not folder.is_dir():
                continue
            images = [Image.open(folder / f"{i:04d}.png").convert("RGB") for i in range(n)]
            rows = {"alpha = beta": images}
            if arm == "grid":
                rows = {f"alpha {a:g}": images[k * len(GRID) : (k + 1) * len(GRID)] for k, a in enumerate(GRID)}
            found[f"N5-{arm}.png"] = png(sheet(rows, heads, title=f"{cell.spec['style']}: {cell.spec['plain'][0]}"))
    return found


def limits(campaign: "Campaign", size: str) -> dict[str, bytes]:
    """Images from the inversion noise of each reference whose object the concept judge ranks worst, the worst first."""
    rows: dict[str, list[Image.Image | None]] = {}
    for cell in campaign.cells_of("inversion", size):
        folder = images_of(cell)
        file = folder / "scores.json"
        if not file.is_file():
            continue
        scored = json.loads(file.read_text(encoding="utf-8"))["images"]
        worst = sorted(scored, key=lambda row: -(row["concept_rank"] or 0))[:LOST]
        images: list[Image.Image | None] = [Image.open(folder / row["file"]).convert("RGB") for row in worst]
        reference = Image.open(folder.parent / "reference.png").convert("RGB")
        rows[cell.unit] = [reference, *images, *[None] * (LOST - len(images))]
    columns = ["reference", *(f"worst {i + 1}" for i in range(LOST))]
    return {"N1-limits.png": png(sheet(rows, columns, title="objects that get lost"))} if rows else {}


def points(campaign: "Campaign", size: str) -> dict[str, str]:
    """Content over style, a point per reference (fig. 8), for full, without refinement, without noise, neither."""
    arms, known, marks, values = ("full", "inversion", "no noise", "gaussians"), campaign.known, [], {}
    for arm in arms:
        cells = campaign.cells_of(arm, size) if arm in campaign.specs else []
        scores = [known[cell.key]["scores"] for cell in cells if cell.key in known]
        values[arm] = [(s["style_probability"], s["concept_top5"]) for s in scores if "concept_top5" in s]
    every = [point for own in values.values() for point in own]
    if not every:
        return {}
    x, y = (plots.Axis.over([0.0, 1.0], label) for label in ("style probability", "concept top-5"))
    frame = plots.Frame(x, y)
    for series, own in enumerate(values.values()):
        marks += [plots.dot(frame, point, series) for point in own]
    return {"N2-points.svg": plots.standalone(plots.svg(frame, "a point per reference", *marks, keys=arms))}


def trade_off(campaign: "Campaign", size: str, x: str, arms: Mapping[str, float]) -> str:
    """SVG: means of the cosine with the reference, leakage and content over {arm: x}; "" below two arms with cells."""
    names, known = ("style_cosine", "leakage", "concept_top5"), campaign.known
    found: dict[float, list[Mapping[str, float]]] = {}
    for arm, at in arms.items():
        cells = campaign.cells_of(arm, size) if arm in campaign.specs else []
        if cells and all(cell.key in known for cell in cells):
            found[at] = [known[cell.key]["scores"] for cell in cells]
    if len(found) < 2:
        return ""
    frame = plots.Frame(plots.Axis.over(list(found), x), plots.Axis.over([0.0, 1.0], f"score, {size} cells"))
    marks = []
    for series, name in enumerate(names):
        points = [(at, mean([own[name] for own in scores if name in own])) for at, scores in sorted(found.items())]
        marks += [plots.line(frame, points, series), *(plots.dot(frame, point, series) for point in points)]
    return plots.standalone(plots.svg(frame, x, *marks, keys=[SCORES[name].title for name in names]))


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
