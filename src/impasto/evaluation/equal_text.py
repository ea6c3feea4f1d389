"""Style at equal text: methods trade text for style by their strength, so they are compared at the same text score.

A method's curve has a point (text_k, style_k) per strength, in the order of the strengths, and is linear between them.
Its style at text t is the most that it has with no less text than t,

    S(t) = max { style(p) : p on the curve, text(p) >= t },

which falls as t rises. A curve that lies below t everywhere has none: the method does not reach that text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
"""(text, style) at one strength."""
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Of a curve, as multiples of a method's own."""
STRENGTHS_TEXT = ", ".join(f"{strength:g}".lstrip("0") for strength in STRENGTHS)
"""".5, .75, 1, ...", for pages."""


def own_index(curve: Sequence[object]) -> int:
    """The place of a method's own strength on its curve: that of 1 in STRENGTHS, 0 where the curve is one point."""
    return STRENGTHS.index(1.0) if len(curve) > 1 else 0


@dataclass(frozen=True)
class StyleAtText:
    """style: S(t). shares: of each point of the curve in it, summing to 1: one point alone, or two neighbours."""

    style: float
    shares: tuple[float, ...]

    def of(self, values: Sequence[float]) -> float:
        """Other values of the points, such as one image set's styles or their strengths, at the same place."""
        return sum(share * value for share, value in zip(self.shares, values, strict=True) if share)


def style_at_text(curve: Sequence[Point], text: float) -> StyleAtText | None:
    """S(text) of a curve; None where the curve does not reach that text, or has no points."""
    places: list[dict[int, float]] = [{k: 1.0} for k, (own, _) in enumerate(curve) if own >= text]
    for k in range(len(curve) - 1):
        left, right = curve[k][0], curve[k + 1][0]
        if min(left, right) < text < max(left, right):
            share = (text - left) / (right - left)
            places.append({k: 1 - share, k + 1: share})
    if not places:
        return None
    best = max(places, key=lambda own: sum(share * curve[k][1] for k, share in own.items()))
    shares = tuple(best.get(k, 0.0) for k in range(len(curve)))
    return StyleAtText(sum(share * style for share, (_, style) in zip(shares, curve, strict=True)), shares)


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over curves of the same strengths, point by point."""
    return [
        (sum(text for text, _ in points) / len(points), sum(style for _, style in points) / len(points))
        for points in zip(*curves, strict=True)
    ]


def jackknife(units: Sequence[str], statistic: Callable[[Sequence[str]], float | None]) -> float | None:
    """Standard error of a statistic of units, each left out once: sqrt((n - 1) / n sum (s_i - mean s)^2). None below
    three units, and where the statistic is not known without one of them."""
    n = len(units)
    without = [statistic([unit for unit in units if unit != one]) for one in units] if n > 2 else [None]
    known = [value for value in without if value is not None]
    if len(known) < len(without):
        return None
    centre = sum(known) / n
    return math.sqrt((n - 1) / n * sum((value - centre) ** 2 for value in known))


@dataclass(frozen=True)
class Rank:
    """One method at the text of the reference row. style: None where its curve does not reach that text. error: its
    standard error (`jackknife`). strength: at which the curve has it."""

    name: str
    style: float | None
    error: float | None
    strength: float | None


def rank_at_equal_text(
    curves: Mapping[str, Mapping[str, Sequence[Point]]],
    strengths: Mapping[str, Sequence[float]],
    reference: str,
    own: int,
) -> tuple[float, list[Rank]]:
    """(text of the reference row, the methods at that text, the most style first; those that do not reach it last).

    curves: {method: {unit: its curve}}; strengths: {method: of its curve's points}. The text is the mean of the
    `reference` method's point `own` over its units. A method is read on the mean of its units' curves. Its error is
    that of leaving out units, of the reference row too where it has them.
    """

    def text_of(units: Sequence[str]) -> float:
        return mean_curve([curves[reference][unit] for unit in units])[own][0]

    text = text_of(list(curves[reference]))

    def read(method: str, units: Sequence[str]) -> StyleAtText | None:
        shared = [unit for unit in units if unit in curves[reference]]
        whole = len(units) == len(curves[method]) or not shared
        return style_at_text(mean_curve([curves[method][u] for u in units]), text if whole else text_of(shared))

    found = []
    for method, of_unit in curves.items():
        result = read(method, list(of_unit))
        error = jackknife(list(of_unit), lambda units, m=method: getattr(read(m, units), "style", None))
        strength = None if result is None else result.of(strengths[method])
        found.append(Rank(method, None if result is None else result.style, error if result else None, strength))
    return text, sorted(found, key=lambda one: -math.inf if one.style is None else one.style, reverse=True)
