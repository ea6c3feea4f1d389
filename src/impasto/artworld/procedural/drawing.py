"""Drawn looks: chalk, blueprint, crayon, pencil, marker."""

from math import cos, pi, sin

import numpy as np

from impasto.artworld.captions import with_article
from impasto.artworld.colours import DARK, LIGHT, MIDDLE
from impasto.artworld.procedural.contour import line_drawing, rough
from impasto.artworld.procedural.look import FLAT, LINE, NO_WORDS, Draw, Look, Words, only
from impasto.artworld.procedural.paint import X, Y, light, mix, noise, shift, stretch, stripes, unpack, wobble


def chalk(draw: Draw) -> Look:
    """Dusty lines, perhaps with dusty colour, on a board."""
    ink = draw.chance(0.55)
    board = draw.colour(only("black", "charcoal", "forest green", "navy", "slate", "dark teal", "maroon"))
    main = draw.colour(LIGHT | only("sky blue", "yellow", "coral", "turquoise"), [board], 0.35)
    coloured, dust, shaky = not ink and draw.chance(0.7), draw.between(0.25, 0.6), draw.between(0.5, 2.5)

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, shaky)
        colour, alpha = unpack(rgba)
        canvas = board.rgb + (0.035 * noise(rng, 16) + 0.02 * noise(rng, 1.2))[..., None]
        tooth = noise(rng, 0.7) * 0.6 + noise(rng, 2) * 0.4
        if coloured:
            canvas = mix(canvas, 0.75 * colour + 0.2, np.clip(alpha * (0.55 + dust * tooth), 0, 0.8))
        stroke = np.clip(line_drawing(rgba, ink, 2.2) * 1.2 * (0.95 + 1.2 * dust * tooth), 0, 0.95)
        return mix(canvas, main.rgb, stroke)

    words = (f"{main.name} chalk drawing", f"drawn in {main.name} chalk", f"dusty {main.name} chalk lines")
    fill: Words = ("filled with coloured chalk", "coloured chalk areas") if coloured else NO_WORDS
    hand: Words = ("wobbly", "shaky hand") if shaky > 1.6 else NO_WORDS
    ground = (f"on {with_article(board.name)} blackboard", f"on {with_article(board.name)} chalkboard")
    return Look("chalk", (words, fill, hand, ground), LINE if ink else FLAT, paint)


def blueprint(draw: Draw) -> Look:
    """Technical lines on a tinted sheet with a grid."""
    ink = draw.chance(0.6)
    sheet = draw.colour(only("navy", "blue", "steel blue", "dark teal", "chocolate brown", "forest green", "indigo"))
    pale = only("white", "cream", "powder blue", "pale yellow", "cyan", "mint green", "peach")
    main = draw.colour(pale, [sheet])
    pitch, strength, wash = draw.pick(8, 12, 16, 21), draw.between(0.1, 0.3), draw.between(0, 0.25)
    net = (((X % pitch) < 1) | ((Y % pitch) < 1)).astype(np.float32) * strength

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        canvas = mix(sheet.rgb + 0.02 * noise(rng, 16)[..., None], main.rgb, net)
        if not ink:
            canvas = mix(canvas, main.rgb, wash * alpha * light(colour))
        return mix(canvas, main.rgb, line_drawing(rgba, ink, 1.2) * 0.95)

    words = (f"blueprint with {main.name} lines", f"technical drawing in {main.name}", f"{main.name} draughting lines")
    thing = with_article(sheet.name)
    ground = (f"on {thing} grid", f"on {sheet.name} squared paper", f"on {thing} sheet with a grid")
    return Look("blueprint", (words, ground), LINE if ink else FLAT, paint)


def crayon(draw: Draw) -> Look:
    """Wax on toothy paper; the paper shows through."""
    paper = draw.colour()
    cover, scale, pitch = draw.between(0.1, 0.8), draw.pick(0.7, 1.2, 2.0), draw.between(4, 7)
    angle = draw.between(0, pi)
    line = draw.colour(apart=[paper]) if draw.chance(0.65) else None

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, 1.6)
        colour, alpha = unpack(rgba)
        strokes = np.cos((X * cos(angle) + Y * sin(angle) + 2 * noise(rng, 16)) * (2 * pi / pitch))
        wax = np.clip((noise(rng, scale) + 0.5 * strokes + 0.9 + cover) * 0.8, 0, 1)
        canvas = paper.rgb + 0.02 * noise(rng, 0.7)[..., None]
        canvas = mix(canvas, np.clip(colour * 1.05, 0, 1), rough(alpha, rng, 0.3, 3) * wax)
        if line is None:
            return canvas
        edge = np.clip(line_drawing(rgba, False, 2.8) * 1.3, 0, 1) * np.clip(noise(rng, scale) * 0.4 + 1, 0, 1)
        return mix(canvas, line.rgb, edge)

    words = ("wax crayon drawing", "child's crayon drawing", "rough crayon strokes")
    lined: Words = (f"{line.name} crayon outlines", f"outlined in {line.name}") if line else ("no outline", "")
    ground = (f"on {paper.name} paper", f"on {with_article(paper.name)} sheet")
    return Look("crayon", (words, lined, ground), FLAT, paint)


def pencil(draw: Draw) -> Look:
    """Coloured pencil: fine strokes in one direction, soft pressure."""
    ink = draw.chance(0.35)
    paper = draw.colour(LIGHT | only("sage green", "ochre", "dusty rose", "steel blue"))
    lead = draw.colour(DARK | only("crimson", "purple", "blue", "emerald", "terracotta", "teal"), [paper])
    angle, pressure, tinted = draw.between(0, pi), draw.between(0.55, 1.0), not ink and draw.chance(0.6)

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, 1.0)
        colour, alpha = unpack(rgba)
        canvas = paper.rgb + 0.015 * noise(rng, 1.2)[..., None]
        if not ink:
            streak = np.cos((X * cos(angle) + Y * sin(angle) + 1.5 * noise(rng, 8)) * 2.1) * 0.2
            press = np.clip(pressure * (0.75 + streak + 0.12 * noise(rng, 0.7)), 0, 1)
            tone = alpha if tinted else alpha * (1 - stretch(light(colour), alpha)) * 0.85
            canvas = mix(canvas, colour if tinted else lead.rgb, tone * press)
        return mix(canvas, lead.rgb, np.clip(line_drawing(rgba, ink, 1.3) * (0.88 + 0.12 * noise(rng, 0.7)), 0, 1))

    medium = "coloured pencil" if tinted else f"{lead.name} pencil"
    words = (f"{medium} drawing", f"soft {medium} sketch", f"sketched in {medium}")
    lined: Words = (f"{lead.name} lines", f"with {lead.name} contours") if tinted else NO_WORDS
    return Look("pencil", (words, lined, (f"on {paper.name} paper",)), LINE if ink else FLAT, paint)


def marker(draw: Draw) -> Look:
    """Felt-tip bands that overlap, inside loose lines."""
    paper = draw.colour(LIGHT | MIDDLE)
    pen = draw.colour(DARK | only("blue", "purple", "crimson", "emerald", "white", "cream"), [paper])
    angle, pitch = draw.between(0, pi), draw.between(7, 13)
    overlap, off = draw.between(0.12, 0.3), draw.between(0, 3)

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, 1.5)
        colour, alpha = unpack(rgba)
        band = stripes(pitch, angle + 0.03 * noise(rng, 32), 0.25)
        ink = np.clip(colour * 1.05 + 0.05, 0, 1) * (1 - overlap * band)[..., None]
        canvas = mix(paper.rgb, shift(ink, off, -off, 1.0), shift(alpha, off, -off) * 0.92)
        return mix(canvas, pen.rgb, np.clip(line_drawing(rgba, False, 2.0) * 1.2, 0, 1))

    words = ("felt-tip marker drawing", "marker sketch with overlapping strokes", "drawn with felt pens")
    slip: Words = ("colour beside the lines", "loosely coloured") if off > 1.5 else NO_WORDS
    return Look("marker", (words, (f"{pen.name} pen lines",), slip, (f"on {paper.name} paper",)), FLAT, paint)
