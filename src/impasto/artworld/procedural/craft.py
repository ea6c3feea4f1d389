"""Looks of crafts: stained glass, mosaic, embroidery, cracked glaze."""

from math import pi

import numpy as np

from impasto.artworld.colours import DARK, LIGHT, MIDDLE, VIVID
from impasto.artworld.procedural.contour import contour
from impasto.artworld.procedural.ground import any_ground
from impasto.artworld.procedural.look import FLAT, NO_WORDS, Draw, Look, Words, only
from impasto.artworld.procedural.paint import (
    X,
    Y,
    areas,
    cell_means,
    cells,
    edges,
    grow,
    mix,
    noise,
    posterise,
    turn_hue,
    unpack,
)


def stained_glass(draw: Draw) -> Look:
    """Glowing panes between dark leads."""
    lead = draw.colour(only("black", "charcoal", "indigo", "chocolate brown", "dark teal"))
    back = draw.colour(VIVID | LIGHT)
    second = draw.colour(VIVID | LIGHT, [back], 0.05)
    size, width, strength = draw.between(11, 20), draw.between(0.6, 1.2), draw.between(1.1, 1.7)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        labels, margin = cells(rng, size)
        pane = cell_means(noise(rng, 1.2), labels)
        glass = mix(back.rgb, second.rgb, np.clip(0.5 + 1.6 * pane, 0, 1))
        rich = turn_hue(cell_means(colour, labels, alpha) * 0.3 + colour * 0.7, 0, strength)
        canvas = mix(glass, np.clip(rich * (1 + 0.9 * pane[..., None]), 0, 1), alpha)
        canvas = canvas * (0.93 + 0.07 * noise(rng, 8)[..., None])
        leads = np.clip(width + 0.5 - margin, 0, 1) * np.where(alpha > 0.5, 0.5, 1)
        rim = np.clip(grow(alpha, 1.6) - grow(alpha, -1.0), 0, 1)
        return mix(canvas, lead.rgb, np.maximum(np.maximum(leads, rim), 0.75 * edges(colour, alpha)))

    words = ("stained glass window", "stained glass panes", "leaded glass picture")
    pair = f"{back.name} and {second.name}"
    ground = (f"on {pair} glass", f"{pair} panes around")
    return Look("stained glass", (words, (f"{lead.name} leads", f"with {lead.name} leads"), ground), FLAT, paint)


def mosaic(draw: Draw) -> Look:
    """Irregular tiles with grout between; they follow the shape's edge."""
    ground = any_ground(draw, fancy=0.3)
    grout = draw.colour(DARK | LIGHT | MIDDLE)
    size, gap, vary = draw.between(4.6, 8.5), draw.between(0.0, 0.4), draw.between(0.1, 0.3)
    angle = draw.between(0.5, 6) if draw.chance(0.35) else 0.0

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        labels, margin = cells(rng, size)
        canvas = mix(ground.paint(rng), turn_hue(colour, angle, 1.2), alpha)
        canvas = (
            cell_means(canvas, areas(labels, colour, alpha)) * (1 + vary * cell_means(noise(rng, 2), labels))[..., None]
        )
        return mix(canvas, grout.rgb, np.clip(gap + 0.5 - margin, 0, 0.85))

    tiles = "small" if size < 6 else "large"
    words = (f"mosaic of {tiles} irregular tiles", f"{tiles} stone mosaic", f"mosaic with {tiles} tiles")
    return Look("mosaic", (words, (f"{grout.name} grout", f"{grout.name} joints"), ground.words), FLAT, paint)


def embroidery(draw: Draw) -> Look:
    """Satin stitch: areas of parallel threads in changing directions."""
    cloth = draw.colour()
    thread, relief, size = draw.between(2.2, 3.4), draw.between(0.12, 0.26), draw.between(10, 20)
    hem = draw.colour(apart=[cloth]) if draw.chance(0.6) else None
    weave = 0.03 * np.cos(X * 2.1) * np.cos(Y * 2.1)
    twist = (0.8 + 0.3 * np.cos((X - Y) * 1.6))[..., None]

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        angle = cell_means(noise(rng, 2), cells(rng, size)[0]) * 4 + 0.8
        stitches = np.cos((X * np.cos(angle) + Y * np.sin(angle)) * (2 * pi / thread))
        canvas = cloth.rgb + (weave + 0.015 * noise(rng, 0.7))[..., None]
        canvas = mix(canvas, posterise(colour, 6) + relief * stitches[..., None] - 0.03, alpha)
        if hem is None:
            return canvas
        return mix(canvas, np.clip(hem.rgb * twist, 0, 1), np.clip(grow(alpha, 2.4) - grow(alpha, -0.6), 0, 1))

    words = ("embroidered patch", "satin stitch embroidery", "embroidery in coloured thread")
    lined: Words = (f"{hem.name} stitched border", f"edged with {hem.name} thread") if hem else NO_WORDS
    return Look("embroidery", (words, lined, (f"on {cloth.name} cloth", f"on {cloth.name} fabric")), FLAT, paint)


def crackle(draw: Draw) -> Look:
    """Glazed earthenware with fine cracks."""
    ground = any_ground(draw, LIGHT | MIDDLE | VIVID, fancy=0.2)
    crack = draw.colour(DARK | only("terracotta", "ochre", "crimson"), [ground.main])
    size, width, gloss = draw.between(8, 20), draw.between(0.1, 0.45), draw.between(0.03, 0.09)
    edge = contour(draw, ground, 0.6)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        labels, margin = cells(rng, size)
        canvas = edge.above(mix(edge.below(ground.paint(rng), alpha), colour, alpha), colour, alpha)
        canvas = canvas + (gloss * noise(rng, 16) + 0.1 * cell_means(noise(rng, 2), labels))[..., None]
        return mix(canvas, crack.rgb, 0.75 * np.clip(width + 0.5 - margin, 0, 1))

    name = crack.name
    words = (f"painted tile with {name} cracks", f"cracked glaze, {name} cracks", f"ceramic crackle in {name}")
    return Look("crackle", (words, edge.words, ground.words), FLAT, paint)
