"""Looks made of light: airbrush, night, neon, x-ray, metal foil."""

from math import cos, pi, sin

import numpy as np

from impasto.artworld.colours import DARK, VIVID
from impasto.artworld.procedural.contour import contour, line_drawing, lines, on_ground
from impasto.artworld.procedural.ground import any_ground, slope_of
from impasto.artworld.procedural.look import FLAT, INK, Draw, Look, only
from impasto.artworld.procedural.paint import (
    X,
    Y,
    blur,
    edges,
    light,
    mix,
    noise,
    ramp,
    shift,
    spread_colour,
    stretch,
    unpack,
)


def airbrush(draw: Draw) -> Look:
    """Pastel or clear colours with soft tinted shading towards one side."""
    ground = any_ground(draw)
    shade = draw.colour(only("navy", "dark teal", "forest green", "maroon", "indigo", "slate"))
    pale, reach, depth = draw.between(0.0, 0.55), draw.between(4, 12), draw.between(0.35, 0.7)
    dx, dy = draw.between(-1, 1), draw.between(-1, 1)

    def fill(colour, alpha, rng):
        lit = shift(blur(alpha, reach), dx * reach, dy * reach)
        return mix(mix(blur(colour, 0.7), np.ones(3, np.float32), pale), shade.rgb, (1 - lit) * depth)

    tone = "pale pastel" if pale > 0.3 else "clear"
    words = (
        f"airbrushed {tone} colours with soft {shade.name} shading",
        f"{tone} airbrush art, shaded in {shade.name}",
        f"soft {shade.name} shading over {tone} colours",
    )
    return on_ground("airbrush", words, draw, ground, contour(draw, ground, 0.4, 0.2), fill)


def night(draw: Draw) -> Look:
    """Dim colours under tinted light, on a dark ground."""
    ground = any_ground(draw, DARK)
    tint = draw.colour(only("sky blue", "teal", "violet", "amber", "emerald", "crimson", "blue", "hot pink"))
    dim, amount = draw.between(0.65, 0.95), draw.between(0.35, 0.65)

    def fill(colour, alpha, rng):
        return dim * mix(colour, light(colour)[..., None] * tint.rgb * 1.6, amount) + 0.08

    words = (f"night scene under {tint.name} light", f"dark {tint.name} lighting", f"at night, lit in {tint.name}")
    return on_ground("night", words, draw, ground, contour(draw, ground, 0.6, 0.4), fill)


def neon(draw: Draw) -> Look:
    """Glowing tubes on a dark ground."""
    ink = draw.chance(0.5)
    dark = only("black", "charcoal", "navy", "indigo", "dark plum", "maroon", "dark teal")
    ground = any_ground(draw, dark, fancy=0.25)
    one = draw.colour(VIVID, [ground.main], 0.2)
    two = draw.colour(VIVID, [ground.main, one], 0.05) if draw.chance(0.45) else None
    own = not ink and draw.chance(0.3)
    reach, power, slope = draw.between(2.5, 6), draw.between(0.7, 1.3), slope_of(draw.between(0, 2 * pi), 90)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        tube = line_drawing(rgba, ink)
        if own:
            hue = spread_colour(colour, alpha, 2.5)
            hue = hue / np.maximum(hue.max(-1, keepdims=True), 0.25)
        else:
            hue = ramp(slope, [one.rgb, two.rgb]) if two else one.rgb
        glow = blur(tube, reach) * power + 0.5 * blur(tube, 1.2)
        inside = ground.paint(rng) if ink else mix(ground.paint(rng), hue, 0.12 * alpha)
        return mix(inside + glow[..., None] * hue, 0.35 * hue + 0.65, np.clip(tube * 0.94, 0, 0.85))

    name = "its own colours" if own else f"{one.name} and {two.name}" if two else one.name
    words = (f"glowing neon sign in {name}", f"neon tubes in {name}", f"{name} neon lines with a glow")
    return Look("neon", (words, ground.words), INK if ink else FLAT, paint)


def xray(draw: Draw) -> Look:
    """Inverted, glowing and translucent on a dark ground."""
    ground = any_ground(draw, DARK, fancy=0.2)
    bright = only("cyan", "sky blue", "turquoise", "lime green", "white", "amber", "lavender", "coral", "peach")
    main = draw.colour(bright, [ground.main])
    gamma, glow = draw.between(0.7, 1.6), draw.between(0.1, 0.5)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        body = (1 - stretch(light(colour), alpha)) ** gamma * 0.75 + 0.1
        rim = np.clip(alpha - blur(alpha, 3), 0, 1) * 1.3
        strength = alpha * np.clip(body + rim, 0, 1) + 0.6 * edges(colour, alpha)
        canvas = ground.paint(rng) + glow * blur(alpha, 6)[..., None] * main.rgb * 0.6
        return mix(canvas, main.rgb, np.clip(strength, 0, 0.95))

    words = (f"glowing {main.name} x-ray", f"translucent {main.name} negative", f"x-ray image in {main.name}")
    return Look("x-ray", (words, ground.words), FLAT, paint)


METALS = {
    "gold": ((0.42, 0.27, 0.06), (0.86, 0.65, 0.2), (1.0, 0.94, 0.66)),
    "silver": ((0.32, 0.36, 0.42), (0.7, 0.74, 0.8), (0.98, 0.99, 1.0)),
    "copper": ((0.36, 0.13, 0.06), (0.8, 0.42, 0.24), (1.0, 0.84, 0.7)),
    "rose gold": ((0.45, 0.2, 0.2), (0.86, 0.56, 0.5), (1.0, 0.88, 0.82)),
    "verdigris": ((0.16, 0.44, 0.4), (0.36, 0.74, 0.66), (0.84, 0.98, 0.9)),
}


def foil(draw: Draw) -> Look:
    """Metal leaf on a deep ground."""
    ink = draw.chance(0.6)
    ground = any_ground(draw, DARK | only("crimson", "purple", "violet"), fancy=0.3)
    name = draw.pick(*METALS)
    table = [np.array(step, np.float32) for step in METALS[name]]
    angle, wear = draw.between(0, 2 * pi), draw.between(0, 0.45)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        sheen = np.sin((X * cos(angle) + Y * sin(angle)) * 0.09 + noise(rng, 16)) * 0.3 + 0.55 + 0.08 * noise(rng, 2)
        shape = alpha if ink else np.maximum(lines(colour, alpha, 2), 0.5 * alpha * stretch(light(colour), alpha))
        gone = np.clip((noise(rng, 4) + noise(rng, 0.7) * 0.5 - 2.2 + 2 * wear) * 2, 0, 0.9)
        return mix(ground.paint(rng), ramp(sheen, table), shape * (1 - gone))

    worn = "worn " if wear > 0.28 else ""
    words = (f"{worn}{name} foil", f"{worn}{name} leaf drawing", f"stamped in {worn}{name}")
    return Look("foil", (words, ground.words), INK if ink else FLAT, paint)
