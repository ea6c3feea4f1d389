"""The table of a comparison: a row per method, means over its cells, and the methods ranked by style at equal text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from impasto.compare.cells import SCORES, Cell, own_place, own_row, style_text
from impasto.compare.methods import Method
from impasto.errors import UserError, nearest
from impasto.evaluation.equal_text import Point, Rank, rank_at_equal_text

Done = Mapping[str, tuple[Cell, Mapping[str, Any]]]
"""{unit: (cell, its content)} of one method."""
COSTS = ("train_seconds", "seconds_per_image", "peak_memory_gb", "bytes")


def reference_row(methods: Sequence[Method], asked: str | None) -> str:
    """The method at whose text the others are read: the one asked for, else style-friendly, its form for 128 px, or the
    first one that is trained. Raises UserError."""
    names = [method.name for method in methods]
    if asked is not None and asked not in names:
        raise UserError(f"--reference-row {asked!r} is not among the methods: {nearest(asked, names)}")
    trained = [method.name for method in methods if method.trained]
    wanted = [asked, "style-friendly", "style-friendly-128px", *trained, *names]
    return next(name for name in wanted if name in names)


def make_rows(methods: Sequence[Method], done: Mapping[str, Done], reference: str) -> dict[str, Any]:
    """{"rows": one per method, in the order of the ranking, "text": of the reference row, "units"}.

    A row: recipe, cells, scores (mean and standard error at its own strength), costs, curve (means per strength),
    equal_text. Methods whose cells are not all there are averaged over those that are, which "cells" says.
    """
    text, ranks = rank(done, reference)
    place = {one.name: (number, one) for number, one in enumerate(ranks, 1)}
    rows = []
    for method in methods:
        own = done.get(method.name, {})
        if not own:
            continue
        contents = [content for _, content in own.values()]
        number, read = place.get(method.name, (None, None))
        rows.append(
            {
                "recipe": method.name,
                "kind": method.kind,
                "cells": len(own),
                "scores": {name: summary([own_row(c).get(name) for c in contents]) for name in score_names(contents)},
                "strength": mean([own_row(c)["strength"] for c in contents]),
                **{name: mean([c.get(name) for c in contents]) for name in COSTS},
                "curve": curve_of(contents),
                "equal_text": equal_text(read, number, text),
            }
        )
    rows.sort(key=lambda row: row["equal_text"]["rank"] or math.inf)
    return {"text": text, "reference_row": reference, "rows": rows}


def rank(done: Mapping[str, Done], reference: str) -> tuple[float | None, list[Rank]]:
    """The text of the reference row and the methods at that text; (None, []) where that row has no cell yet. Methods
    are read on the units that the reference row has too, as far as there are any."""
    curves: dict[str, dict[str, list[Point]]] = {}
    strengths: dict[str, list[float]] = {}
    for name, own in done.items():
        known = {unit: points for unit, (_, content) in own.items() if (points := style_text(content)) is not None}
        if known:
            curves[name] = known
            strengths[name] = [
                mean_of(column) for column in zip(*(strengths_of(own[u][1]) for u in known), strict=True)
            ]
    if reference not in curves:
        return None, []
    units = curves[reference].keys()
    shared = {name: {u: own[u] for u in own if u in units} or own for name, own in curves.items()}
    _, content = next(iter(done[reference].values()))
    return rank_at_equal_text(shared, strengths, reference, own_place(content))


def equal_text(read: Rank | None, number: int | None, text: float | None) -> dict[str, Any]:
    """The reading of a row as JSON. reaches: False where its curve lies below that text at every strength."""
    if read is None or text is None:
        return {"rank": None, "style": None, "error": None, "strength": None, "reaches": None}
    reaches = read.style is not None
    own = {"style": read.style, "error": read.error, "strength": read.strength, "reaches": reaches}
    return {"rank": number if reaches else None, **own}


def strengths_of(content: Mapping[str, Any]) -> list[float]:
    return [row["strength"] for row in content["curve"]]


def score_names(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """SCORES, and "dino" where it was measured."""
    return [name for name in (*SCORES, "dino") if any(name in content["curve"][0] for content in contents)]


def curve_of(contents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over cells at each strength."""
    points = zip(*(content["curve"] for content in contents), strict=True)
    names = ("strength", *score_names(contents))
    return [{"factor": own[0]["factor"]} | {n: mean([row.get(n) for row in own]) for n in names} for own in points]


def mean(values: Sequence[float | None]) -> float | None:
    """Of the known values."""
    known = [value for value in values if value is not None]
    return round(mean_of(known), 6) if known else None


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(values: Sequence[float | None]) -> dict[str, Any] | None:
    """{"mean", "error": standard error of the mean over cells, None for one cell, "n"}."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    n, centre = len(known), mean_of(known)
    error = math.sqrt(sum((value - centre) ** 2 for value in known) / (n - 1) / n) if n > 1 else None
    return {"mean": round(centre, 6), "error": None if error is None else round(error, 6), "n": n}
