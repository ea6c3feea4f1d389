"""The plot of `noise calibrate`: share of the style decided over log-SNR."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SCALE = 860, 520, 2
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 96, 74
PAPER, INK, FAINT, GRID = "#f6f4ef", "#23211d", "#77726a", "#dcd8cf"
CURVE, BAND, UNTIL, SINCE, LAW = "#b3402a", "#ecd0c4", "#2f6f8f", "#7a8f2f", "#a08ab8"
Point = tuple[float, float]


def plot(result: dict[str, Any]) -> Image.Image:
    """RGB image of a result of `calibrate`."""
    levels, proposal = result["levels"], result["proposal"]
    mean, std = proposal["noise_mean"], proposal["noise_std"]
    first, last = result.get("range") or (-math.inf, math.inf)  # of the base: a law is truncated there
    low = min(levels[0]["log_snr"], max(mean - 2 * std, first)) - 0.5
    high = max(levels[-1]["log_snr"], min(mean + 2 * std, last)) + 0.5
    canvas = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(15 * SCALE), ImageFont.load_default(12 * SCALE)

    def at(log_snr: float, share: float) -> Point:
        x = LEFT + (log_snr - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (min(max(share, -0.15), 1.15) + 0.15) / 1.3 * (HEIGHT - TOP - BOTTOM)
        return x * SCALE, y * SCALE

    def height(log_snr: float) -> float:
        return math.exp(-(((log_snr - mean) / std) ** 2) / 2)

    def path(key: str) -> list[Point]:
        return [at(row["log_snr"], row[key]) for row in levels]

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line([at(low, share), at(high, share)], GRID, SCALE)
        x, y = at(low, share)
        draw.text((x - 8 * SCALE, y), f"{share:.0%}", FAINT, font=small, anchor="rm")
    for tick in range(math.ceil(low), math.floor(high) + 1):
        if tick % 2 == 0:
            x, y = at(tick, -0.15)
            draw.line([(x, y), (x, y + 5 * SCALE)], FAINT, SCALE)
            draw.text((x, y + 8 * SCALE), str(tick), FAINT, font=small, anchor="ma")
    draw.polygon([*path("high"), *reversed(path("low"))], fill=BAND)
    left, right = max(low, first), min(high, last)
    bell = [left + (right - left) * i / 200 for i in range(201)]
    peak = min(max(mean, left), right)
    dashed(draw, [at(x, -0.15 + 0.45 * height(x) / height(peak)) for x in bell], LAW)
    known = result["published"]["style-friendly"]["matched_mean"]
    if low < known < high:
        x, y = at(known, 1.15)
        dashed(draw, [(x, y + i * 6 * SCALE) for i in range(int((at(known, -0.15)[1] - y) / 6 / SCALE))], FAINT)
        label = f"mean of the published training law (-6), matched: {known:g}"
        draw.text((x + 6 * SCALE, y), label, FAINT, font=small, anchor="lm")
    for key, colour in (("kept_until", UNTIL), ("kept_since", SINCE)):
        draw.line(path(key), colour, 2 * SCALE, joint="curve")
        for x, y in path(key):
            draw.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), fill=colour)
    draw.line(path("decided"), CURVE, 3 * SCALE, joint="curve")
    for name, point in result["points"].items():
        x, y = at(point["log_snr"], float(name.rstrip("%")) / 100)
        draw.ellipse((x - 5 * SCALE, y - 5 * SCALE, x + 5 * SCALE, y + 5 * SCALE), fill=PAPER, outline=CURVE, width=4)
        sign = {"below": "<= ", "above": ">= "}.get(point.get("outside", ""), "")
        label = f"{name} at {sign}{point['log_snr']:.1f}"
        fits = x + 10 * SCALE + small.getlength(label) <= WIDTH * SCALE
        place = (x + 10 * SCALE, y + 4 * SCALE, "lm") if fits else (x + 5 * SCALE, y - 16 * SCALE, "rm")
        draw.text(place[:2], label, INK, font=small, anchor=place[2])
    middle = (LEFT + WIDTH - RIGHT) / 2 * SCALE
    draw.text((middle, (HEIGHT - 30) * SCALE), "log-SNR (left: noisier)", INK, font=small, anchor="ma")
    settings = result["settings"]
    title = f"{result['base']}, {settings['size']} px: how much of the style is decided, {result['prompts']} prompts"
    draw.text((LEFT * SCALE, 16 * SCALE), title, INK, font=font)
    keys = (
        ("decided, 95 %", CURVE),
        ("words until here", UNTIL),
        ("words from here on", SINCE),
        (f"proposed law: mean {mean:g}, std {std:g}", LAW),
    )
    x = LEFT * SCALE
    for name, colour in keys:
        draw.line([(x, 58 * SCALE), (x + 22 * SCALE, 58 * SCALE)], colour, 3 * SCALE)
        draw.text((x + 28 * SCALE, 58 * SCALE), name, INK, font=small, anchor="lm")
        x += 28 * SCALE + small.getlength(name) + 26 * SCALE
    return canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def dashed(draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: str) -> None:
    for i in range(0, len(points) - 2, 4):
        draw.line(points[i : i + 3], colour, 2 * SCALE)
