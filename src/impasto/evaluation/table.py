"""The score table for the terminal: a row per score, a column per set of images."""

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from impasto.evaluation.scores import SCORES


def scores_table(columns: Mapping[str, Mapping[str, Any] | None], title: str = "", names: Any = SCORES) -> Table:
    """A rich table: `columns` maps a heading to a result of `evaluate` (or its part "true" or "base").

    Title and headings are not interpreted as markup (a folder may be called `out[final]`). Each cell is the mean with
    its 95 % interval, or a dash. Rows without any known score are omitted.
    """
    shown = Text(title, "table.title") if title else None
    table = Table(title=shown, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("score", no_wrap=True)
    for heading in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for name in names:
        cells = [cell(column, name) for column in columns.values()]
        if any(text != "–" for text in cells):
            table.add_row(SCORES[name].title + {"lower": " ↓", "higher": ""}.get(SCORES[name].better, ""), *cells)
    return table


def encoders_table(encoders: Mapping[str, Mapping[str, Any]]) -> Table:
    """The part "encoders" of a result of `evaluate`: a row per encoder and score, with its source and version."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("encoder", "score", "images", "base", "version"):
        table.add_column(heading, no_wrap=True)
    for name, found in encoders.items():
        for score, own in found["scores"].items():
            cells = [_mean(own), _mean((found["base"] or {}).get(score))]
            table.add_row(Text(name), score, *cells, Text(found["version"]))
    return table


def _mean(found: Mapping[str, Any] | None) -> str:
    if found is None or found["mean"] is None:
        return "–"
    low, high = map(decimal, found["interval"])
    return f"{decimal(found['mean'])} [dim]{low}–{high}[/dim]"


def range_columns(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Columns of the floor and the ceiling of the similarities with the reference, none where there are none."""
    ranges = result.get("ranges") or {}
    columns = {"unrelated": "floor", "reference": "ceiling"}
    return {title: {name: own[key] for name, own in ranges.items()} for title, key in columns.items() if ranges}


def cell(column: Mapping[str, Any] | None, name: str) -> str:
    """`62 %` or `.712` with the 95 % interval below it (rich markup, dim); a dash for an unknown score."""
    if column is None or column.get(name) is None:
        return "–"
    show = percent if SCORES[name].percent else decimal
    interval = (column.get("interval") or {}).get(name)
    spread = f"\n[dim]{show(interval[0])}–{show(interval[1])}[/dim]" if interval else ""
    return show(column[name]) + (" %" if SCORES[name].percent else "") + spread


def percent(value: float) -> str:
    """A share in [0, 1] as a percentage without its sign, no decimals."""
    return f"{100 * value:.0f}"


def decimal(value: float) -> str:
    """Three decimals, no leading zero: `.712`, `-.040`; one from 10 on: `73.1`."""
    return f"{value:.1f}" if abs(value) >= 10 else re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")
