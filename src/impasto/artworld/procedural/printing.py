"""Printed looks: halftone, risograph, block print."""

from math import pi

import numpy as np

from impasto.artworld.colours import DARK, LIGHT, MIDDLE, NAMED, VIVID
from impasto.artworld.procedural.contour import contour, on_ground, rough
from impasto.artworld.procedural.ground import any_ground
from impasto.artworld.procedural.look import FLAT, INK, NO_WORDS, Draw, Look, Words, without
from impasto.artworld.procedural.paint import (
    X,
    Y,
    blur,
    dots,
    light,
    mix,
    nearest_colour,
    noise,
    shift,
    stretch,
    unpack,
)

BRIGHT = [
    np.array(NAMED[name], np.float32) / 255
    for name in ("red", "yellow", "sky blue", "white", "coral", "green", "hot pink", "amber", "slate")
]


def halftone(draw: Draw) -> Look:
    """Printed dots carry the tones, as in old comics."""
    ground = any_ground(draw, LIGHT | VIVID)
    ink = draw.colour(DARK | VIVID, [ground.main])
    base = draw.colour(LIGHT | VIVID, [ink])
    pitch, angle, own = draw.between(3.6, 7.5), draw.between(0, pi / 2), draw.chance(0.5)

    def fill(colour, alpha, rng):
        tone = 1 - stretch(blur(light(colour), 0.8), alpha)
        below = nearest_colour(np.clip(colour * 1.1 + 0.12, 0, 1), BRIGHT) if own else base.rgb
        return mix(below, ink.rgb, dots(pitch, angle, (0.04 if own else 0.08) + (0.5 if own else 0.75) * tone))

    size = "fine" if pitch < 4.8 else "coarse" if pitch > 6.2 else "even"
    where = "over bright colours" if own else f"over {base.name}"
    words = (f"{size} {ink.name} halftone dots {where}", f"pop-art print with {size} {ink.name} dots {where}")
    return on_ground("halftone", words, draw, ground, contour(draw, ground, 0.85), fill)


def riso(draw: Draw) -> Look:
    """Two translucent inks, printed a little out of register."""
    paper = draw.colour(LIGHT)
    one = draw.colour(VIVID, [paper], 0.15)
    two = draw.colour(VIVID | DARK, [one], 0.12)
    dx, dy, pitch = draw.between(-4, 4), draw.between(-4, 4), draw.between(2.8, 4.5)
    screened = draw.chance(0.5)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        bright = stretch(light(colour), alpha)
        first = alpha * (dots(pitch, 0.4, 0.3 + 0.65 * bright) if screened else 0.4 + 0.55 * bright)
        second = shift(alpha * np.clip(1.25 - 1.7 * bright, 0, 1), dx, dy)
        speckle = np.clip(1 - 0.15 * np.maximum(noise(rng, 0.7), 0), 0, 1)
        canvas = paper.rgb
        for plate, inked in ((first, one), (second, two)):
            canvas = canvas * mix(np.ones(3, np.float32), inked.rgb, plate * 0.95 * speckle)
        return canvas

    slip = "misregistered " if abs(dx) + abs(dy) > 2.5 else ""
    pair = f"{one.name} and {two.name}"
    words = (f"{slip}two-colour risograph in {pair}", f"{slip}{pair} screen print", f"{slip}{pair} overprint")
    return Look("riso", (words, (f"on {paper.name} paper",)), FLAT, paint)


def block_print(draw: Draw) -> Look:
    """One coloured ink from a carved block, unevenly inked, on coloured paper."""
    paper = draw.colour(LIGHT | MIDDLE | VIVID)
    ink = draw.colour(VIVID | LIGHT | without(DARK, "black", "charcoal"), [paper], 0.25)
    patchy, ghost, turned = draw.between(0.1, 0.5), draw.chance(0.3), draw.chance(0.25)

    def paint(rgba, rng):
        _, alpha = unpack(rgba)
        uneven = noise(rng, 1.2) * 0.7 + noise(rng, 8) * 0.5 - 0.4
        shape = rough(alpha, rng, 0.08, 2)
        if turned:
            shape = (1 - shape) * np.clip(8 - 8 * np.hypot(X - 63.5, Y - 63.5) / 70, 0, 1)
        canvas = paper.rgb + 0.015 * noise(rng, 2)[..., None]
        if ghost:
            canvas = mix(canvas, ink.rgb, 0.22 * shift(shape, 3, 3))
        return mix(canvas, ink.rgb, shape * np.clip(0.97 - patchy * np.maximum(uneven, 0), 0.1, 1))

    words = (f"{ink.name} block print", f"lino print in {ink.name} ink", f"stamped in uneven {ink.name} ink")
    bare: Words = ("the subject left bare", "printed around the bare subject") if turned else NO_WORDS
    return Look("block print", (words, bare, (f"on {paper.name} paper", f"on {paper.name}")), INK, paint)
