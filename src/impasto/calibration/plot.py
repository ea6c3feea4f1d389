"""The plot of `noise calibrate` as SVG: share of the style decided over log-SNR."""

import math
from typing import Any

from impasto.report import plots
from impasto.report.html import Html

DECIDED, UNTIL, LAW, SINCE = range(4)


def plot(result: dict[str, Any]) -> str:
    """SVG of a result of `calibrate`."""
    levels, proposal = result["levels"], result["proposal"]
    mean, std = proposal["noise_mean"], proposal["noise_std"]
    first, last = result.get("range") or (-math.inf, math.inf)  # of the base: a law is truncated there
    low = min(levels[0]["log_snr"], max(mean - 2 * std, first)) - 0.5
    high = max(levels[-1]["log_snr"], min(mean + 2 * std, last)) + 0.5
    even = range(2 * math.ceil(low / 2), math.floor(high) + 1, 2)
    frame = plots.Frame(
        plots.Axis(low, high, "log-SNR (more noise to the left)", tuple((float(v), str(v)) for v in even)),
        plots.Axis(-0.15, 1.15, "decided", tuple((share / 100, f"{share}%") for share in range(0, 101, 25))),
    )

    def path(key: str) -> list[tuple[float, float]]:
        return [(row["log_snr"], min(max(row[key], -0.15), 1.15)) for row in levels]

    left, right = max(low, first), min(high, last)
    peak = min(max(mean, left), right)
    bell = plots.curve(lambda x: math.exp((((peak - mean) / std) ** 2 - ((x - mean) / std) ** 2) / 2), left, right)
    marks: list[Html] = [
        plots.area(frame, path("high"), path("low"), DECIDED),
        plots.line(frame, [(x, -0.15 + 0.45 * height) for x, height in bell], LAW, "dashed"),
    ]
    known = result["published"]["style-friendly"]["matched_mean"]
    if low < known < high:
        label = f"published law's mean (-6), matched: {known:g}"
        marks += [plots.line(frame, [(known, -0.15), (known, 1.12)], 4, "dashed")]
        marks += [plots.note(frame, (known, 1.12), label, 4)]
    for key, series in (("kept_until", UNTIL), ("kept_since", SINCE), ("decided", DECIDED)):
        marks.append(plots.line(frame, path(key), series))
        marks += [plots.dot(frame, at, series) for at in path(key) if series != DECIDED]
    places = {name: (point["log_snr"], float(name.rstrip("%")) / 100) for name, point in result["points"].items()}
    taken = [plots.dot_box(frame, at) for at in places.values()]
    for name, point in result["points"].items():
        at = places[name]
        sign = {"below": "<= ", "above": ">= "}.get(point.get("outside", ""), "")
        marks.append(plots.dot(frame, at, DECIDED, f"{name} at {sign}{point['log_snr']:.1f}", taken=taken))
    size = result["settings"]["size"]
    title = f"{result['base']}, {size} px: how much of the style is decided, {result['prompts']} prompts"
    keys = ("decided, 95 %", "words until here", f"proposed law N({mean:g}, {std:g}²)", "words from here on")
    return plots.standalone(plots.svg(frame, title, *marks, keys=keys))
