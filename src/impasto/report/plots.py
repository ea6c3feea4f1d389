"""SVG plots, inline in a page or as files: curves, histograms, points. Colours come from style.css."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.report.html import Html, el

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 68, 18, 18, 52
Points = Sequence[tuple[float, float]]
Span = Sequence[float]
Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the drawing."""
CHARACTER, LINE = 10.0, 17.0
"""Width and height of a label's character at the largest font of style.css, that of narrow screens."""


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with its label and ticks (position, text)."""

    low: float
    high: float
    label: str
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def over(cls, values: Sequence[float], label: str, count: int = 5) -> "Axis":
        """An axis over all `values` (at least one), with round ticks 1-2-5."""
        low, high = min(values), max(values)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        raw = (high - low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(m for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        ticks = tuple((i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1))
        return cls(first * step, last * step, label, ticks)


@dataclass(frozen=True)
class Frame:
    """The drawing area: data coordinates to SVG coordinates."""

    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position of a data point."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def svg(frame: Frame, title: str, *marks: Html, above: Axis | None = None, keys: Sequence[str] = ()) -> Html:
    """The SVG: grid, axes with labels, marks, and a second scale `above` (same span as the x axis).

    keys: names of the series, for a standalone file; then the title is written above them.
    """
    extra = (34 if above else 0) + (36 + 9 * (len(keys) + len(keys) % 2) if keys else 0)
    parts = (*_grid(frame), *marks, *(_above(frame, above) if above else ()))
    heading = (el("text", title, x=LEFT, y=18 - extra), *_keys(keys, 38 - extra)) if keys else ()
    box = f"0 {-extra} {WIDTH} {HEIGHT + extra}"
    return el("svg", el("title", title), *heading, *parts, viewBox=box, role="img", class_="plot")


def standalone(plot: Html, css: str = "") -> str:
    """The text of an SVG file: a plot with name space, size, the report's colours, and more rules."""
    start, inside = plot.split(">", 1)
    height = start.split('viewBox="')[1].split('"')[0].split()[3]
    size = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
    rules = Path(__file__).with_name("style.css").read_text(encoding="utf-8").partition("@media (max-width")[0]
    css = f".plot {{ font-family: system-ui, 'DejaVu Sans', sans-serif; }} {css}"
    return f"{start.replace('<svg ', size, 1)}><style>{rules}{css}</style>{inside}\n"


def _keys(names: Sequence[str], y: float) -> list[Html]:
    """Each name after a line in its colour, two in a row."""
    marks: list[Html] = []
    for i, name in enumerate(names):
        x = LEFT + (WIDTH - LEFT) / 2 * (i % 2)
        stroke = el("line", x1=x, x2=x + 16, y1=y - 4, y2=y - 4, class_="curve")
        marks.append(el("g", stroke, el("text", name, x=x + 21, y=y, class_="note"), class_=f"s{i}"))
        y += 18 * (i % 2)
    return marks


def _grid(frame: Frame) -> list[Html]:
    bottom, top = HEIGHT - BOTTOM, TOP
    marks = []
    for value, label in frame.y.ticks:
        y = frame.at(frame.x.low, value)[1]
        marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(el("text", label, x=LEFT - 8, y=y + 4, class_="tick", text_anchor="end"))
    for value, label in frame.x.ticks:
        x = frame.at(value, frame.y.low)[0]
        marks.append(el("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        marks.append(el("text", label, x=x, y=bottom + 18, class_="tick", text_anchor="middle"))
    marks.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    marks.append(el("text", frame.x.label, x=middle, y=HEIGHT - 10, class_="label", text_anchor="middle"))
    turn = f"translate(14 {(top + bottom) / 2:.0f}) rotate(-90)"
    marks.append(el("text", frame.y.label, transform=turn, class_="label", text_anchor="middle"))
    return marks


def _above(frame: Frame, axis: Axis) -> list[Html]:
    marks = [el("text", axis.label, x=(LEFT + WIDTH - RIGHT) / 2, y=-22, class_="label", text_anchor="middle")]
    for value, label in axis.ticks:
        x = frame.at(value, frame.y.low)[0]
        marks.append(el("line", x1=x, x2=x, y1=TOP - 8, y2=TOP - 4, class_="axis"))
        marks.append(el("text", label, x=x, y=TOP - 14, class_="tick", text_anchor="middle"))
    return marks


def line(frame: Frame, points: Points, series: int, kind: str = "curve") -> Html:
    """A polyline in the colour of `series`; kind "curve", "faint-line" or "dashed"."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(*point) for point in points))
    return el("polyline", points=path, class_=f"{kind} s{series}")


def area(frame: Frame, upper: Points, lower: Points, series: int) -> Html:
    """What lies between two curves from left to right."""
    outline = (frame.at(*point) for point in (*upper, *reversed(lower)))
    return el("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in outline), class_=f"area s{series}")


def bars(frame: Frame, edges: Sequence[float], heights: Sequence[float], series: int) -> Html:
    """Histogram bars between `edges` (one more than `heights`)."""
    shapes = []
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        x0, y0 = frame.at(left, height)
        x1, y1 = frame.at(right, frame.y.low)
        shapes.append(el("rect", x=x0 + 0.5, y=y0, width=max(x1 - x0 - 1, 0.5), height=max(y1 - y0, 0.0)))
    return el("g", *shapes, class_=f"bars s{series}")


def dot(
    frame: Frame,
    point: tuple[float, float],
    series: int,
    label: str = "",
    hint: str = "",
    taken: list[Box] | None = None,
) -> Html:
    """A point with a label beside it and a hint that shows on hover.

    taken: boxes that the label must not cover, the dots among them; the label's own is appended.
    """
    x, y = frame.at(*point)
    at, anchor = label_place(x, y, label, taken)
    note = el("text", label, x=at[0], y=at[1], class_="note", text_anchor=anchor)
    return el("g", el("circle", el("title", hint or label), cx=x, cy=y, r=5), note, class_=f"dot s{series}")


def label_place(x: float, y: float, label: str, taken: list[Box] | None) -> tuple[tuple[float, float], str]:
    """(position, text-anchor) of a label near the dot at (x, y): the nearest place that is free."""
    out, anchor = (-1, "end") if x > WIDTH - 120 else (1, "start")
    other = "start" if anchor == "end" else "end"
    first = (x + 9 * out, y - 7), anchor
    if taken is None:
        return first
    width = CHARACTER * len(label)
    for far in range(0, 120, 12):
        near = 9 + far / 2
        places = [
            *(((x + near * out, y + up), anchor) for up in (-7 - far, 17 + far)),
            *(((x - near * out, y + up), other) for up in (-7 - far, 17 + far)),
            *(((x, y + up), "middle") for up in (-11 - far, 23 + far)),
        ]
        for (left, base), side in places:
            left -= {"start": 0.0, "end": width, "middle": width / 2}[side]
            box = (left, base - LINE + 4, left + width, base + 4)
            inside = left >= LEFT - 8 and box[2] <= WIDTH and box[1] >= -1 and box[3] <= HEIGHT - BOTTOM + 4
            if inside and not any(overlap(box, other_box) for other_box in taken):
                taken.append(box)
                return (left + {"start": 0.0, "end": width, "middle": width / 2}[side], base), side
    return first


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, top, right, bottom) have a common area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def dot_box(frame: Frame, point: tuple[float, float]) -> Box:
    """The box of a dot."""
    x, y = frame.at(*point)
    return x - 6, y - 6, x + 6, y + 6


def note(frame: Frame, point: tuple[float, float], label: str, series: int) -> Html:
    """A label without a dot, to the right of a point, or above to the left of it where there is no room."""
    x, y = frame.at(*point)
    out, anchor = (1, "start") if x + 6.5 * len(label) < WIDTH else (-1, "end")
    text = el("text", label, x=x + 6 * out, y=y + (4 if out > 0 else -9), class_="note", text_anchor=anchor)
    return el("g", text, class_=f"dot s{series}")


def whiskers(frame: Frame, point: tuple[float, float], x_span: Span, y_span: Span, series: int) -> Html:
    """Thin lines for the intervals (low, high) of x and y around a point."""
    across = [frame.at(x, point[1]) for x in x_span]
    up = [frame.at(point[0], y) for y in y_span]
    lines = (el("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1]) for a, b in (across, up))
    return el("g", *lines, class_=f"whisker s{series}")


def legend(names: Sequence[str]) -> Html:
    """The names of the series in their colours, below a plot."""
    return el("p", *(el("span", name, class_=f"key s{i}") for i, name in enumerate(names)), class_="legend")


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values (fewer at the start)."""
    result, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        result.append(total / min(i + 1, window))
    return result


def density(values: Sequence[float], low: float, high: float, bins: int) -> tuple[list[float], list[float]]:
    """(edges, heights) of a histogram whose area is 1; values outside [low, high] fall into the end bins."""
    width = (high - low) / bins
    counts = [0] * bins
    for value in values:
        inside = min(max(value, low), high)
        counts[min(bins - 1, math.floor((inside - low) / width))] += 1
    return [low + i * width for i in range(bins + 1)], [c / (len(values) * width) for c in counts]


def curve(function: Callable[[float], float], low: float, high: float, count: int = 121) -> list[tuple[float, float]]:
    """`count` points of a function between low and high."""
    xs = [low + (high - low) * i / (count - 1) for i in range(count)]
    return [(x, function(x)) for x in xs]
