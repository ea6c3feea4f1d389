"""Outlines, and looks composed of ground, filling and outline."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from impasto.artworld.captions import Random
from impasto.artworld.colours import NAMED
from impasto.artworld.procedural.ground import Ground
from impasto.artworld.procedural.look import FLAT, NO_WORDS, Canvas, Colour, Draw, Look, Plane, Words, without
from impasto.artworld.procedural.paint import blur, edges, grow, mix, noise, unpack

SIZES = ((1.5, "thin"), (2.6, "medium"), (4.0, "thick"), (9.0, "very thick"))  # (maximum width in pixels, name)


@dataclass(frozen=True)
class Contour:
    """An outline, painted before the filling, (canvas, alpha) -> canvas, and after it, (canvas, colour, alpha)."""

    words: Words
    below: Callable[[Canvas, Plane], Canvas]
    above: Callable[[Canvas, Canvas, Plane], Canvas]


NO_CONTOUR = Contour(("without outlines", "no outline", ""), lambda c, alpha: c, lambda c, colour, alpha: c)


def contour(draw: Draw, ground: Ground, share: float = 0.7, inner: float = 0.5) -> Contour:
    """With probability `share` a contour that contrasts with `ground`; the share `inner` of them has inner lines."""
    if not draw.chance(share):
        return NO_CONTOUR
    width = draw.between(0.9, 5.5)  # heavy black strokes belong to a held-out style
    main = draw.colour(NAMED if width < 2 else without(NAMED, "black", "charcoal"), [ground.main], 0.25)
    if draw.chance(0.2):
        return _double(draw, main, width)
    size = next(word for limit, word in SIZES if width < limit)
    if draw.chance(inner):
        words = (f"{size} {main.name} lines", f"{size} {main.name} line work", f"drawn with {size} {main.name} lines")
        return Contour(
            words,
            lambda canvas, alpha: mix(canvas, main.rgb, grow(alpha, width)),
            lambda canvas, colour, alpha: mix(canvas, main.rgb, lines(colour, alpha, min(width, 2.5))),
        )
    words = (f"{size} {main.name} outline", f"{size} {main.name} contour", f"outlined in {size} {main.name}")
    return Contour(words, lambda canvas, alpha: mix(canvas, main.rgb, grow(alpha, width)), NO_CONTOUR.above)


def _double(draw: Draw, main: Colour, width: float) -> Contour:
    second = draw.colour(apart=[main], by=0.25)
    words = (f"double outline in {main.name} and {second.name}", f"{main.name} and {second.name} double contour")

    def below(canvas: Canvas, alpha: Plane) -> Canvas:
        return mix(mix(canvas, second.rgb, grow(alpha, 1.5 * width + 1)), main.rgb, grow(alpha, width))

    return Contour(words, below, NO_CONTOUR.above)


def lines(colour: Canvas, alpha: Plane, width: float) -> Plane:
    """Contour lines of a colour image, about `width` pixels thick (1 to 3)."""
    thin = edges(colour, alpha)
    if width < 1.8:
        return thin * min(1.0, 0.55 + 0.3 * width)
    return np.clip(blur(thin, width / 3) * 1.9, 0, 1)


def line_drawing(rgba: np.ndarray, ink: bool, width: float = 1.5) -> Plane:
    """The image as lines: the ink of an ink drawing, the contours of a colour image."""
    colour, alpha = unpack(rgba)
    return alpha if ink else lines(colour, alpha, width)


def rough(alpha: Plane, rng: Random, amount: float, scale: float) -> Plane:
    """The shape with an uneven edge; amount: about 0.1 (slight) to 0.4 (strong)."""
    uneven = np.clip(noise(rng, scale), -1.6, 1.6)
    return np.clip((blur(alpha, 0.8 + amount * 3) - 0.5 + amount * 0.5 * uneven) * 3 + 0.5, 0, 1)


def on_ground(
    family: str,
    words: Words,
    draw: Draw,
    ground: Ground,
    edge: Contour,
    fill: Callable[[Canvas, Plane, Random], Canvas],
    sources: tuple[str, ...] = FLAT,
) -> Look:
    """A look of ground, contour and filling, (colour, alpha, rng) -> colour; 15 % are grainy."""
    grain = draw.between(0.015, 0.045) if draw.chance(0.15) else 0.0

    def paint(rgba: np.ndarray, rng: Random) -> Canvas:
        colour, alpha = unpack(rgba)
        canvas = mix(edge.below(ground.paint(rng), alpha), fill(colour, alpha, rng), alpha)
        canvas = edge.above(canvas, colour, alpha)
        return canvas + grain * noise(rng, 0.7)[..., None] if grain else canvas

    return Look(
        family, (words, edge.words, ("grainy", "with film grain") if grain else NO_WORDS, ground.words), sources, paint
    )
