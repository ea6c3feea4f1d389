"""Pixel operations for procedural styles: planes float32 [128, 128] and images float32 [128, 128, 3], values in 0..1.

In numpy and Pillow, some tenths of a millisecond each. Noise and cells come from small banks, computed once from fixed
seeds, varied by random offset, orientation and contrast.
"""

from functools import cache
from math import cos, erf, exp, pi, sin, sqrt

import numpy as np
from PIL import Image, ImageFilter

from impasto.artworld.captions import Random

SIZE = 128
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)
Plane = np.ndarray
Picture = np.ndarray


def unpack(rgba: np.ndarray) -> tuple[Picture, Plane]:
    """uint8 [128, 128, 4], straight alpha -> colour and alpha."""
    values = rgba.astype(np.float32) / 255
    return values[..., :3], values[..., 3]


def pack(picture: Picture) -> np.ndarray:
    """-> uint8 [128, 128, 3]."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def mix(below: Picture, above: Picture, weight: Plane | float) -> Picture:
    """below + weight * (above - below); `above` may be one colour [3]."""
    weight = weight[..., None] if isinstance(weight, np.ndarray) else weight
    return below + weight * (above - below)


def light(picture: Picture) -> Plane:
    """Luminance, 0.299 r + 0.587 g + 0.114 b."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of a plane or picture (in 8 bits)."""
    if sigma < 0.2:
        return image
    pixels = Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / 255


def spread_colour(colour: Picture, alpha: Plane, sigma: float) -> Picture:
    """The colour blurred inside the shape and extended beyond its edge: blur(colour * alpha) / blur(alpha)."""
    weight = blur(alpha, sigma)
    return np.clip(blur(colour * alpha[..., None], sigma) / np.maximum(weight, 0.02)[..., None], 0, 1)


def grow(alpha: Plane, width: float) -> Plane:
    """The shape dilated by `width` pixels (eroded if negative), with soft edges and round corners.

    A straight edge blurred by sigma has the value Phi(-d / sigma) at the distance d outside: the threshold.
    """
    sigma = 0.55 * abs(width) + 0.6
    z = width / sigma
    level = 0.5 * (1 + erf(-z / sqrt(2)))
    slope = exp(-z * z / 2) / (sigma * sqrt(2 * pi))  # per pixel
    return np.clip((blur(alpha, sigma) - level) / (1.3 * slope) + 0.5, 0, 1)


def edges(colour: Picture, alpha: Plane, low: float = 0.10, high: float = 0.30) -> Plane:
    """Contours of the shape and of the colour areas inside it, as soft lines of about two pixels."""
    strength = np.zeros(alpha.shape, np.float32)
    for plane in (*(colour[..., i] * alpha for i in range(3)), alpha):
        np.maximum(strength[:, 1:-1], np.abs(plane[:, 2:] - plane[:, :-2]), out=strength[:, 1:-1])
        np.maximum(strength[1:-1], np.abs(plane[2:] - plane[:-2]), out=strength[1:-1])
    return np.clip((strength - low) / (high - low), 0, 1)


def posterise(picture: Picture, levels: int) -> Picture:
    """Each channel quantised to `levels` steps from 0 to 1."""
    return np.minimum(np.floor(picture * levels), levels - 1) / (levels - 1)


def ramp(plane: Plane, colours: list[np.ndarray]) -> Picture:
    """Map 0..1 to a gradient of `colours` ([3] each, evenly spaced)."""
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(colours)), [c[i] for c in colours]) for i in range(3)],
        -1,
    ).astype(np.float32)
    return table[(np.clip(plane, 0, 1) * 255).astype(np.uint8)]


def stretch(plane: Plane, alpha: Plane) -> Plane:
    """Contrast stretch: 5th to 95th percentile of the values inside the shape -> 0..1."""
    inside = plane[alpha > 0.5]
    if len(inside) < 9:
        return plane
    low, high = np.percentile(inside[::3], (5, 95))
    if high - low < 0.05:
        return np.full_like(plane, np.clip((low + high) / 2, 0.15, 0.85))
    return np.clip((plane - low) / (high - low), 0, 1)


def turn_hue(picture: Picture, angle: float, saturation: float = 1.0) -> Picture:
    """Rotate hues around the grey axis by `angle` radians and scale saturation."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = np.array([[1, 0, 0], [0, cos(angle), -sin(angle)], [0, sin(angle), cos(angle)]])
    matrix = np.linalg.inv(to_yiq) @ (turn * [[1], [saturation], [saturation]]) @ to_yiq
    return np.clip(picture @ matrix.T.astype(np.float32), 0, 1)


def nearest_colour(picture: Picture, palette: list[np.ndarray]) -> Picture:
    """Every pixel replaced by the nearest colour of the palette."""
    colours = np.stack(palette).astype(np.float32)
    distance = (colours**2).sum(-1) - 2 * picture @ colours.T
    return colours[distance.argmin(-1)]


def noise(rng: Random, scale: float, streaks: bool = False) -> Plane:
    """Smooth noise of mean 0 and spread 1, features of about `scale` pixels; `streaks`: long across instead."""
    bank = _noise_bank(min(range(len(_SCALES)), key=lambda i: abs(_SCALES[i] - scale)), streaks)
    y, x = int(rng.random() * SIZE), int(rng.random() * SIZE)
    field = bank[y : y + SIZE, x : x + SIZE]
    turn = int(rng.random() * 4)
    field = field[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return field if streaks or rng.random() < 0.5 else field.T


_SCALES = (0.7, 1.2, 2.0, 4.0, 8.0, 16.0, 32.0)


@cache
def _noise_bank(index: int, streaks: bool) -> np.ndarray:
    rng = np.random.default_rng([7, index, streaks])
    field = rng.standard_normal((3 * SIZE, 3 * SIZE))
    scale = _SCALES[index]
    spectrum = np.fft.rfft2(field)
    fy, fx = np.fft.fftfreq(3 * SIZE)[:, None], np.fft.rfftfreq(3 * SIZE)[None]
    wide = 6 * scale if streaks else scale
    spectrum *= np.exp(-2 * (pi * scale / 2 * fy) ** 2 * 2 - 2 * (pi * wide / 2 * fx) ** 2 * 2)
    field = np.fft.irfft2(spectrum, s=field.shape)
    return (field / field.std()).astype(np.float32)


def shift(plane: np.ndarray, dx: float, dy: float, fill: float = 0.0) -> np.ndarray:
    """Shift by whole pixels; pixels from outside are `fill`."""
    dx, dy = round(dx), round(dy)
    moved = np.full_like(plane, fill)
    h, w = plane.shape[:2]
    moved[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = plane[
        max(-dy, 0) : h - max(dy, 0), max(-dx, 0) : w - max(dx, 0)
    ]
    return moved


def wobble(rgba: np.ndarray, rng: Random, amount: float) -> np.ndarray:
    """Random smooth distortion by up to about `amount` pixels (uint8 [128, 128, 4] in and out)."""
    count = 8
    step = SIZE // count
    moved = [[(rng.random() - 0.5, rng.random() - 0.5) for _ in range(count + 1)] for _ in range(count + 1)]

    def corner(i: int, j: int) -> tuple[float, float]:
        inner = 0 < i < count and 0 < j < count
        dx, dy = moved[i][j] if inner else (0.0, 0.0)
        return j * step + 2 * amount * dx, i * step + 2 * amount * dy

    mesh = [
        (
            (j * step, i * step, (j + 1) * step, (i + 1) * step),
            (*corner(i, j), *corner(i + 1, j), *corner(i + 1, j + 1), *corner(i, j + 1)),
        )
        for i in range(count)
        for j in range(count)
    ]
    image = Image.fromarray(rgba).convert("RGBa")  # premultiplied, so that edges do not darken
    return np.asarray(
        image.transform((SIZE, SIZE), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR).convert("RGBA")
    )


def dots(pitch: float, angle: float, tone: Plane | float, phase: tuple[float, float] = (0.0, 0.0)) -> Plane:
    """Halftone: round dots on a grid rotated by `angle`, `pitch` pixels apart, covering about the share `tone`."""
    u = (X * cos(angle) + Y * sin(angle)) * (2 * pi / pitch) + phase[0]
    v = (Y * cos(angle) - X * sin(angle)) * (2 * pi / pitch) + phase[1]
    screen = (np.cos(u) + np.cos(v)) / 4 + 0.5
    return np.clip((screen - (1 - tone)) * (pitch / 1.6) + 0.5, 0, 1)


def stripes(pitch: float, angle: float | Plane, share: float = 0.5) -> Plane:
    """Soft-edged stripes `pitch` pixels apart, of which `share` is 1."""
    wave = np.abs(((X * np.cos(angle) + Y * np.sin(angle)) / pitch) % 1 - 0.5) * 2
    return np.clip((share - wave) * pitch / 2 + 0.5, 0, 1).astype(np.float32)


def cells(rng: Random, size: float) -> tuple[np.ndarray, Plane]:
    """Irregular tiles of about `size` pixels: (labels int64 [128, 128], distance to the tile's border in pixels)."""
    labels, margin = _cell_bank(min(range(len(_CELLS)), key=lambda i: abs(_CELLS[i] - size)), int(rng.random() * 4))
    turn = int(rng.random() * 8)
    flips = (slice(None, None, -1 if turn & 1 else 1), slice(None, None, -1 if turn & 2 else 1))
    labels, margin = labels[flips], margin[flips]
    return (labels.T, margin.T) if turn & 4 else (labels, margin)


_CELLS = (4.6, 5.5, 7.0, 9.0, 12.0, 16.0, 20.0)


@cache
def _cell_bank(index: int, variant: int) -> tuple[np.ndarray, Plane]:
    """Voronoi cells of a jittered hexagonal grid; candidates of a pixel are the 25 nearest grid points."""
    rng, step = np.random.default_rng([11, index, variant]), _CELLS[index]
    rise = step * 0.87
    height, width = int(SIZE / rise) + 6, int(SIZE / step) + 6
    row, column = np.mgrid[:height, :width]
    points_y = (row - 2.5) * rise + rng.uniform(-0.38, 0.38, row.shape) * step
    points_x = (column - 2.5 + (row % 2) / 2) * step + rng.uniform(-0.38, 0.38, row.shape) * step
    rows = (Y / rise + 2.5).astype(int)[..., None] + np.repeat(np.arange(-2, 3), 5)
    columns = (X / step + 2.5).astype(int)[..., None] + np.tile(np.arange(-2, 3), 5)
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    label = rows * width + columns
    distance = np.hypot(points_y[rows, columns] - Y[..., None], points_x[rows, columns] - X[..., None])
    nearest = distance.argmin(-1)[..., None]
    own = np.take_along_axis(label, nearest, -1)
    other = np.where(label == own, np.inf, distance).min(-1)
    margin = (other - np.take_along_axis(distance, nearest, -1)[..., 0]) / 2
    return own[..., 0], margin.astype(np.float32)


def areas(labels: np.ndarray, colour: Picture, alpha: Plane) -> np.ndarray:
    """The labels of `cells`, with tiles split at the borders of the shape and of its bright areas."""
    bright = light(colour)
    inside = alpha > 0.5
    middle = np.median(bright[inside]) if inside.any() else 0.5
    return labels * 3 + inside * (1 + (bright > middle))


def cell_means(values: np.ndarray, labels: np.ndarray, weight: Plane | None = None) -> np.ndarray:
    """The mean of `values` (plane or image) over each pixel's tile, weighted by `weight`."""
    flat = labels.ravel()
    w = np.ones(flat.shape, np.float32) if weight is None else weight.ravel() + 1e-4
    total = np.bincount(flat, w)
    planes = values[..., None] if values.ndim == 2 else values
    means = [np.bincount(flat, w * planes[..., i].ravel()) / np.maximum(total, 1e-6) for i in range(planes.shape[-1])]
    result = np.stack([mean[labels] for mean in means], -1).astype(np.float32)
    return result[..., 0] if values.ndim == 2 else result
