"""Looks of flat areas: new palettes, turned hues, outlines, stickers, cut paper."""

from math import cos, pi, sin

import numpy as np

from impasto.artworld.colours import DARK, LIGHT, MIDDLE, NAMED, VIVID
from impasto.artworld.procedural.contour import contour, on_ground
from impasto.artworld.procedural.ground import any_ground
from impasto.artworld.procedural.look import COLOUR, FLAT, Draw, Look, join_names, without
from impasto.artworld.procedural.paint import (
    SIZE,
    blur,
    grow,
    light,
    mix,
    noise,
    posterise,
    ramp,
    shift,
    stretch,
    turn_hue,
    unpack,
)

GREYS = ("black", "charcoal", "slate", "grey", "light grey", "white")


def palette(draw: Draw) -> Look:
    """Light to dark in three or four flat colours of a new palette."""
    ground = any_ground(draw)
    chosen = [draw.colour(DARK | VIVID)]
    for pool in (VIVID | MIDDLE, LIGHT | VIVID, NAMED)[: draw.pick(2, 2, 3)]:
        chosen.append(draw.colour(pool, chosen, 0.1))
    chosen.sort(key=lambda colour: colour.light)
    table = np.stack([colour.rgb for colour in chosen])

    def fill(colour, alpha, rng):
        level = stretch(blur(light(colour), 0.5), alpha) * len(table)
        return table[np.minimum(level.astype(int), len(table) - 1)]

    words = (
        f"flat {join_names(*chosen)} shapes",
        f"limited palette of {join_names(*chosen)}",
        f"flat design in {join_names(*chosen)}",
    )
    return on_ground("palette", words, draw, ground, contour(draw, ground, 0.6), fill)


def posterised(draw: Draw) -> Look:
    """The picture's own or turned colours in few steps."""
    ground = any_ground(draw)
    levels, strength = int(draw.between(2, 4.99)), draw.between(0.8, 1.5)
    angle = draw.between(0.6, 5.6) if draw.chance(0.5) else 0.0

    def fill(colour, alpha, rng):
        return posterise(turn_hue(colour, angle, strength), levels)

    steps = {2: "harsh two-step", 3: "three-step", 4: "four-step"}[levels]
    kind = "false colours" if angle else "colours"
    words = (f"posterised flat {kind}", f"{steps} posterised {kind}", f"poster-like {kind} in {levels} steps")
    return on_ground("posterised", words, draw, ground, contour(draw, ground), fill)


def repainted(draw: Draw) -> Look:
    """Its own shading, every hue turned: a green tomato, a violet dog."""
    ground = any_ground(draw)
    angle, strength = draw.between(0.8, 5.4), draw.between(0.7, 1.6)
    tone = "muted" if strength < 0.95 else "strong" if strength > 1.3 else "clear"

    def fill(colour, alpha, rng):
        return turn_hue(colour, angle, strength)

    words = (f"{tone} unnatural colours", f"false-colour cartoon in {tone} hues", f"{tone} swapped colours")
    return on_ground("repainted", words, draw, ground, contour(draw, ground), fill)


def gradient_map(draw: Draw) -> Look:
    """Luminance along a smooth ramp of two or three colours; never greys alone."""
    ground = any_ground(draw)
    low = draw.colour(without(DARK | VIVID, *GREYS))
    high = draw.colour(LIGHT | VIVID, [low], 0.35)
    chosen = [low, draw.colour(VIVID | MIDDLE, [low, high], 0.05), high] if draw.chance(0.6) else [low, high]
    turned = draw.chance(0.25)
    table = [colour.rgb for colour in (chosen[::-1] if turned else chosen)]

    def fill(colour, alpha, rng):
        return ramp(stretch(light(colour), alpha), table)

    kind = "inverted tones" if turned else "tones"
    words = (
        f"{join_names(*chosen)} {kind}",
        f"toned image in {join_names(*chosen)}",
        f"gradient map of {join_names(*chosen)}",
    )
    return on_ground("gradient map", words, draw, ground, contour(draw, ground, 0.45, 0.2), fill, COLOUR)


def outlined(draw: Draw) -> Look:
    """The picture's own colours with coloured lines, on any ground."""
    ground = any_ground(draw)
    strength = draw.between(0.6, 1.4)
    tone = "muted" if strength < 0.85 else "vivid" if strength > 1.15 else "natural"
    words = (f"{tone} flat colours", f"cartoon in {tone} colours", f"{tone} cartoon colours")
    edge = contour(draw, ground, 1.0)
    return on_ground("outlined", words, draw, ground, edge, lambda colour, alpha, rng: turn_hue(colour, 0, strength))


def sticker(draw: Draw) -> Look:
    """A broad border in paper white or a colour, and a flat shadow to one side."""
    ground = any_ground(draw)
    border = draw.colour(LIGHT | VIVID, [ground.main], 0.2)
    width, dx, dy = draw.between(3, 6.5), draw.between(-4, 4), draw.between(1, 5)
    depth, strength = draw.between(0.2, 0.5), draw.between(0.9, 1.4)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        outer = grow(alpha, width)
        canvas = ground.paint(rng) * (1 - depth * shift(outer, dx, dy))[..., None]
        return mix(mix(canvas, border.rgb, outer), turn_hue(colour, 0, strength), alpha)

    name = border.name
    words = (f"die-cut with a broad {name} border", f"{name} bordered cut-out", f"vinyl decal with {name} edge")
    return Look("sticker", (words, ("offset shadow", "hard shadow to one side", ""), ground.words), COLOUR, paint)


def offset_print(draw: Draw) -> Look:
    """The three colour channels apart."""
    ground = any_ground(draw)
    angle, distance = draw.between(0, 2 * pi), draw.between(2, 5.5)
    dx, dy = round(distance * cos(angle)), round(distance * sin(angle))

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        canvas = mix(ground.paint(rng), colour, alpha)
        place = np.arange(SIZE)
        for channel, way in ((0, -1), (2, 1)):
            rows, columns = np.clip(place - way * dy, 0, SIZE - 1), np.clip(place - way * dx, 0, SIZE - 1)
            canvas[..., channel] = canvas[rows][:, columns, channel]
        return canvas

    far = "strong" if distance > 3.8 else "slight"
    words = (f"{far} colour fringes of red and cyan", f"glitch with {far} channel shift", f"{far} chromatic offset")
    return Look("offset", (words, ground.words), COLOUR, paint)


def paper_cut(draw: Draw) -> Look:
    """Layers of cut paper, each with a thin shadow on the one below."""
    ground = any_ground(draw, fancy=0.3)
    chosen = [draw.colour()]
    chosen += [draw.colour(apart=chosen, by=0.12)]
    chosen += [draw.colour(apart=chosen, by=0.12)]
    chosen.sort(key=lambda colour: colour.light)
    table = np.stack([colour.rgb for colour in chosen])
    own, depth, dx = draw.chance(0.45), draw.between(0.25, 0.5), draw.pick(-2, 2)

    def paint(rgba, rng):
        colour, alpha = unpack(rgba)
        level = np.minimum(stretch(blur(light(colour), 1.0), alpha) * 3, 2.99).astype(int)
        sheet = posterise(blur(colour, 0.8), 3) if own else table[level]
        height = np.where(alpha > 0.5, level + 1, 0).astype(np.float32) / 3
        cast = np.clip(shift(blur(height, 1.4), dx, 2) - height, 0, 0.33) * 3
        canvas = mix(ground.paint(rng), sheet, alpha) + 0.018 * noise(rng, 0.7)[..., None]
        return canvas * (1 - depth * cast)[..., None]

    what = "layered coloured paper" if own else f"layered {join_names(*chosen)} paper"
    words = (f"cut from {what}", f"paper collage of {what}", f"{what} cut-outs")
    return Look("paper cut", (words, ground.words), FLAT, paint)
