"""Backgrounds of looks."""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from impasto.artworld.captions import Random, with_article
from impasto.artworld.colours import NAMED, RGB
from impasto.artworld.procedural.look import Canvas, Colour, Draw, Words
from impasto.artworld.procedural.paint import SIZE, X, Y, dots, mix, noise, ramp, stripes


@dataclass(frozen=True)
class Ground:
    """main: the dominant colour. words: descriptions. paint: rng -> canvas."""

    main: Colour
    words: Words
    paint: Callable[[Random], Canvas]


def any_ground(draw: Draw, pool: dict[str, RGB] = NAMED, fancy: float = 0.45) -> Ground:
    """A ground with colours of `pool`, with probability `fancy` patterned, else plain."""
    main = draw.colour(pool)
    if not draw.chance(fancy):
        return plain(main)
    return draw.pick(gradient, disc, rays, dotted, striped, paper, cloudy)(draw, main, draw.colour(pool, [main], 0))


def plain(main: Colour) -> Ground:
    thing = with_article(main.name)
    words = (f"on {thing} ground", f"on {thing} background", f"against {thing} background")
    return Ground(main, words, lambda rng: np.broadcast_to(main.rgb, (SIZE, SIZE, 3)))


def gradient(draw: Draw, main: Colour, other: Colour) -> Ground:
    slope = slope_of(draw.between(0, 2 * pi), 150)
    words = (f"on a gradient from {main.name} to {other.name}", f"over {main.name} fading to {other.name}")
    return Ground(main, words, lambda rng: ramp(slope, [main.rgb, other.rgb]))


def slope_of(angle: float, length: float) -> np.ndarray:
    """A plane from 0 to 1 in the direction `angle` over `length` pixels around the centre."""
    return np.clip(((X - 63.5) * cos(angle) + (Y - 63.5) * sin(angle)) / length + 0.5, 0, 1)


def disc(draw: Draw, main: Colour, other: Colour) -> Ground:
    inside = np.clip(draw.between(44, 62) - np.hypot(X - 63.5, Y - 63.5) + 0.5, 0, 1)
    thing = with_article(main.name)
    words = (f"on {thing} disc on {other.name}", f"in {thing} circle on {other.name}")
    return Ground(main, words, lambda rng: mix(other.rgb, main.rgb, inside))


def rays(draw: Draw, main: Colour, other: Colour) -> Ground:
    count, turn = int(draw.between(7, 15)), draw.between(0, 2 * pi)
    beams = np.clip(np.sin(np.arctan2(Y - 63.5, X - 63.5) * count + turn) * 6 + 0.5, 0, 1)
    words = (f"on {main.name} and {other.name} sun rays", f"on {with_article(main.name)} and {other.name} sunburst")
    return Ground(main, words, lambda rng: mix(main.rgb, other.rgb, beams * 0.75))


def dotted(draw: Draw, main: Colour, other: Colour) -> Ground:
    spots = dots(draw.between(9, 22), draw.between(0, pi / 2), draw.between(0.12, 0.3))
    words = (f"on {main.name} with {other.name} dots", f"on {other.name} polka dots on {main.name}")
    return Ground(main, words, lambda rng: mix(main.rgb, other.rgb, spots))


def striped(draw: Draw, main: Colour, other: Colour) -> Ground:
    bands = stripes(draw.between(8, 28), draw.between(0, pi), draw.between(0.25, 0.5))
    words = (f"on {main.name} and {other.name} stripes", f"on a striped {main.name} and {other.name} ground")
    return Ground(main, words, lambda rng: mix(main.rgb, other.rgb, bands))


def paper(draw: Draw, main: Colour, other: Colour) -> Ground:
    scale, depth = draw.pick(0.7, 1.2, 2.0), draw.between(0.012, 0.04)
    words = (f"on rough {main.name} paper", f"on grainy {main.name} paper")
    return Ground(main, words, lambda rng: main.rgb + depth * noise(rng, scale)[..., None])


def cloudy(draw: Draw, main: Colour, other: Colour) -> Ground:
    scale = draw.pick(8.0, 16.0, 32.0)
    words = (f"on mottled {main.name} and {other.name}", f"on a cloudy {main.name} and {other.name} ground")
    return Ground(main, words, lambda rng: mix(main.rgb, other.rgb, np.clip(noise(rng, scale) * 0.3 + 0.35, 0, 0.8)))
