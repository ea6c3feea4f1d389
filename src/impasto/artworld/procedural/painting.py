"""Painted looks: watercolour, oil, dabs, spray, brush and ink."""

import numpy as np
from PIL import Image, ImageFilter

from impasto.artworld.colours import DARK, LIGHT
from impasto.artworld.procedural.contour import line_drawing, rough
from impasto.artworld.procedural.ground import any_ground
from impasto.artworld.procedural.look import FLAT, INK, NO_WORDS, Draw, Look, Words, only
from impasto.artworld.procedural.paint import (
    areas,
    blur,
    cell_means,
    cells,
    grow,
    light,
    mix,
    noise,
    pack,
    spread_colour,
    stretch,
    turn_hue,
    unpack,
    wobble,
)


def watercolour(draw: Draw) -> Look:
    """Bleeding washes that dry darker at their edge: the paper's light, filtered."""
    paper = draw.colour(LIGHT)
    bleed, dried, strength = draw.between(0.1, 0.32), draw.between(0.3, 0.8), draw.between(0.8, 1.15)
    pen = draw.colour(DARK) if draw.chance(0.45) else None
    angle = draw.between(0, 6) if draw.chance(0.35) else 0.0

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, 1.2)
        colour, alpha = unpack(rgba)
        shape = rough(alpha, rng, bleed, 6)
        pigment = np.clip(turn_hue(spread_colour(colour, alpha, 1.2), angle, 1.3), 0.03, 1)
        rim = np.clip(shape - blur(shape, 2.2), 0, 1) * 1.6
        pools = 0.82 + 0.12 * noise(rng, 10) + 0.04 * noise(rng, 1.2) + dried * rim
        wash = np.clip(shape * pools * strength, 0, 1) + 0.12 * blur(shape, 4) * (1 - shape)
        canvas = (paper.rgb + 0.02 * noise(rng, 1.2)[..., None]) * mix(np.ones(3, np.float32), pigment, wash)
        return mix(canvas, pen.rgb, line_drawing(rgba, False, 1.2) * 0.85) if pen else canvas

    words = ("watercolour painting", "watercolour wash with bleeding edges", "loose watercolour")
    wet: Words = ("soft bleeding colours", "wet edges") if bleed > 0.22 else ("with dark dried edges", "")
    lined: Words = (f"{pen.name} pen lines", f"with {pen.name} pen") if pen else NO_WORDS
    return Look("watercolour", (words, lined, wet, (f"on {paper.name} paper",)), FLAT, paint)


def oil(draw: Draw) -> Look:
    """Thick paint: broad dabs, and bristle streaks that catch the light."""
    ground = any_ground(draw, fancy=0.2)
    relief, strength, dab = draw.between(0.025, 0.09), draw.between(0.95, 1.4), draw.between(5, 9)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        image = Image.fromarray(pack(mix(ground.paint(rng), colour, alpha))).filter(ImageFilter.MedianFilter(5))
        canvas = np.asarray(image, np.float32) / 255
        touch = cell_means(noise(rng, 2), areas(cells(rng, dab)[0], colour, alpha))
        canvas = turn_hue(canvas * (1 + 0.16 * touch)[..., None], 0, strength)
        bristle, way = noise(rng, 1.2, streaks=True), noise(rng, 16)
        return canvas + relief * np.where(way > 0, bristle, bristle.T)[..., None]

    thick = "thick" if relief > 0.055 else "smooth"
    words = (f"{thick} oil painting", f"{thick} brush strokes of oil paint", f"painted in oils, {thick} strokes")
    return Look("oil", (words, ground.words), FLAT, paint)


def dabs(draw: Draw) -> Look:
    """Separate round dabs of paint."""
    ground = any_ground(draw, fancy=0.2)
    size, vary, strength = draw.between(4.6, 7), draw.between(0.02, 0.1), draw.between(1.0, 1.6)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        labels, margin = cells(rng, size)
        spot = np.clip((margin - 0.25) * 1.6, 0, 1) * np.clip((cell_means(alpha, labels) - 0.35) * 6, 0, 1)
        tint = cell_means(np.stack([noise(rng, 0.7) for _ in range(3)], -1), labels) * 3
        pure = turn_hue(cell_means(colour, labels, alpha) + vary * tint, 0, strength)
        return mix(mix(ground.paint(rng), spread_colour(colour, alpha, 1), alpha * 0.7), pure, spot)

    words = ("pointillist dabs of colour", "painted in separate dabs", "dotted brush dabs of pure colour")
    return Look("dabs", (words, ground.words), FLAT, paint)


def spray(draw: Draw) -> Look:
    """Street paint: soft edges, overspray, bold outlines."""
    wall = any_ground(draw, fancy=0.5)
    line = draw.colour(apart=[wall.main])
    soft, width, strength = draw.between(0.8, 1.8), draw.between(2, 4.5), draw.between(1.2, 1.8)
    angle = draw.between(0.5, 6) if draw.chance(0.5) else 0.0

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        specks = np.clip((noise(rng, 0.7) - 2.1 + 2.2 * blur(alpha, 5)) * 3, 0, 0.8) * (1 - alpha)
        hue = turn_hue(blur(colour, soft * 0.6), angle, strength)
        canvas = mix(wall.paint(rng), hue, specks)
        canvas = mix(canvas, line.rgb, blur(grow(alpha, width), soft * 0.8))
        canvas = mix(canvas, hue, blur(alpha, soft * 0.4))
        return mix(canvas, line.rgb, 0.75 * line_drawing(rgba, False, 2.2))

    words = ("spray-painted graffiti", "graffiti with soft overspray", "spray can street art")
    return Look("spray", (words, (f"{line.name} outline", f"bold {line.name} lines"), wall.words), FLAT, paint)


def brush_ink(draw: Draw) -> Look:
    """Wet ink, washes from dark to pale, in one colour that is not black."""
    paper = draw.colour(LIGHT | only("sage green", "ochre", "dusty rose"))
    deep = only("indigo", "navy", "maroon", "forest green", "dark teal", "chocolate brown", "crimson", "violet")
    main = draw.colour(deep, [paper])
    dry, washed, ink = draw.between(0.1, 0.5), draw.between(0.4, 0.9), draw.chance(0.4)

    def paint(rgba, rng):
        rgba = wobble(rgba, rng, 1.8)
        colour, alpha = unpack(rgba)
        canvas = paper.rgb + 0.02 * noise(rng, 2)[..., None]
        streak = np.maximum(noise(rng, 1.2, streaks=True) * dry, 0)
        if ink:
            return mix(canvas, main.rgb, rough(alpha, rng, 0.15, 3) * np.clip(1 - streak, 0.1, 1))
        tone = 1 - stretch(light(blur(colour, 0.8)), alpha)
        wash = rough(alpha, rng, 0.25, 8) * np.clip(0.15 + washed * tone + 0.1 * noise(rng, 8), 0, 1)
        stroke = np.clip(line_drawing(rgba, False, 2.8) * 1.4 - streak, 0, 0.95)
        return mix(canvas, main.rgb, np.maximum(wash, stroke))

    words = (f"{main.name} brush and ink drawing", f"ink wash in {main.name}", f"{main.name} ink painting")
    dryness: Words = ("dry brush strokes", "streaky strokes") if dry > 0.3 else ("wet ink", "")
    return Look("brush ink", (words, dryness, (f"on {paper.name} paper",)), INK if ink else FLAT, paint)
