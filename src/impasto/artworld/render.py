"""Render a source of a package: 128 x 128 RGBA, straight alpha, the object fitted to 87.5 % of the canvas.

A source is rendered at 256 px, cropped to the box where alpha > 12/255, scaled so that its longer side is 112 px
(Lanczos on premultiplied alpha) and centred, since margins differ per set and would identify the style. Exception: in
bitmap fonts one font pixel becomes 8 x 8 pixels on a fixed grid, unfiltered.
"""

import io
import json
import logging
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from impasto.errors import UserError

VERSION = 1  # part of every rendered style's key: increment it when a pixel may change
SIZE = 128
RENDER_SIZE = 256
FILL = 0.875
ALPHA_EDGE = 12  # of 255; pixels up to this alpha are outside the object's box
GLYPH_MARGIN = 1.04  # side of a glyph's square view box in units of the glyph's longer side
Files = Mapping[str, bytes]
Reader = Callable[[str], np.ndarray]  # source, as in the alignment table -> uint8 [128, 128, 4]


def fit(rgba: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Crop `rgba` (uint8 [h, w, 4], straight alpha) to its object and fit that to 87.5 % of a `size` px canvas.

    Returns uint8 [size, size, 4]; colour is 0 where alpha is 0. Raises ValueError for an empty image.
    """
    solid = rgba[..., 3] > ALPHA_EDGE
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    if not len(rows):
        raise ValueError("the image is empty")
    cropped = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = cropped.shape[:2]
    scale = size * FILL / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.zeros((size, size, 4), np.uint8)
    y, x = (size - h) // 2, (size - w) // 2
    canvas[y : y + h, x : x + w] = np.asarray(Image.fromarray(cropped).resize((w, h), Image.Resampling.LANCZOS))
    canvas[canvas[..., 3] == 0] = 0
    return canvas


def svg_rgba(svg: str, size: int = RENDER_SIZE) -> np.ndarray:
    """Render an SVG text with resvg; its longer side becomes `size` px. Returns uint8 [h, w, 4], straight alpha."""
    png = _import_extra("resvg_py").svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def iconify(files: Files, patterns: list[str]) -> Reader:
    """An Iconify set (`icons.json`); a source is an icon's name, aliases are followed."""
    icon_set = json.loads(_only(files, patterns[0]))
    icons, aliases = icon_set["icons"], icon_set.get("aliases", {})

    def read(name: str) -> np.ndarray:
        while name not in icons:
            name = aliases[name]["parent"]
        icon = icons[name]
        left, top, width, height = (
            icon.get(key, icon_set.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        return fit(
            svg_rgba(
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" color="#000">{icon["body"]}</svg>'
            )
        )

    return read


def svg_files(files: Files, patterns: list[str]) -> Reader:
    """A folder of SVG files; a source is a path inside the package."""
    return lambda path: fit(svg_rgba(files[path].decode()))


def image_files(files: Files, patterns: list[str]) -> Reader:
    """A folder of images; a source is a path inside the package."""
    return lambda path: fit(np.asarray(Image.open(io.BytesIO(files[path])).convert("RGBA")))


def outline_font(files: Files, patterns: list[str]) -> Reader:
    """A font, possibly split over several files; a source is a code point such as `U+1F600`."""
    glyph = _glyphs(files, patterns)

    def read(code_point: str) -> np.ndarray:
        path, (x0, y0, x1, y1), _ = glyph(code_point)
        side = max(x1 - x0, y1 - y0) * GLYPH_MARGIN
        return fit(svg_rgba(_glyph_svg(path, (x0 + x1 - side) / 2, (-y0 - y1 - side) / 2, side)))

    return read


def pixel_font(files: Files, patterns: list[str]) -> Reader:
    """A 16 x 16 bitmap font stored as outlines; a source is a code point.

    Each font pixel becomes 8 x 8 pixels; the glyph is centred on the grid.
    """
    glyph, cells = _glyphs(files, patterns), 16

    def read(code_point: str) -> np.ndarray:
        path, _, em = glyph(code_point)
        alpha = svg_rgba(_glyph_svg(path, 0, -em * 14 / cells, em))[..., 3]
        step = RENDER_SIZE // cells
        bits = alpha[step // 2 :: step, step // 2 :: step] > 127
        rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
        bits = bits[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = bits.shape
        grid = np.zeros((cells, cells), np.uint8)
        y, x = (cells - height) // 2, (cells - width) // 2
        grid[y : y + height, x : x + width] = 255 * bits
        picture = np.zeros((SIZE, SIZE, 4), np.uint8)
        picture[..., 3] = np.kron(grid, np.ones((SIZE // cells, SIZE // cells), np.uint8))
        return picture

    return read


READERS: dict[str, Callable[[Files, list[str]], Reader]] = {
    "iconify": iconify,
    "svg-files": svg_files,
    "image-files": image_files,
    "outline-font": outline_font,
    "pixel-font": pixel_font,
}


def _only(files: Files, suffix: str) -> bytes:
    (name,) = (name for name in files if name.endswith(suffix))
    return files[name]


def _glyph_svg(path: str, left: float, top: float, side: float) -> str:
    """An SVG of a glyph's path; the y axis of fonts points up, that of SVG down."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {side} {side}">'
        f'<path transform="scale(1,-1)" d="{path}"/></svg>'
    )


def _glyphs(files: Files, patterns: list[str]) -> Callable[[str], tuple[str, tuple[float, ...], int]]:
    """`U+1F600` -> (SVG path, (x0, y0, x1, y1), units per em), from the first font file that has the character."""
    _import_extra("fontTools")
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.pens.svgPathPen import SVGPathPen
    from fontTools.ttLib import TTFont

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns about dates in old fonts
    names = sorted((i, name) for name in files for i, suffix in enumerate(patterns) if name.endswith(suffix))
    owner: dict[int, tuple] = {}
    for _, name in names:
        if name.endswith(".woff2"):
            _import_extra("brotli")
        font = TTFont(io.BytesIO(files[name]), lazy=True)
        glyph_set = font.getGlyphSet()
        for code_point, glyph_name in (font.getBestCmap() or {}).items():
            owner.setdefault(code_point, (font["head"].unitsPerEm, glyph_set, glyph_name))  # type: ignore[attr-defined]

    def glyph(code_point: str) -> tuple[str, tuple[float, ...], int]:
        em, glyph_set, name = owner[int(code_point.removeprefix("U+"), 16)]
        path, box = SVGPathPen(glyph_set), BoundsPen(glyph_set)
        glyph_set[name].draw(path)
        glyph_set[name].draw(box)
        return path.getCommands(), box.bounds, em

    return glyph


def check_extras() -> None:
    """Raise UserError where a package of the extra `artworld` is missing."""
    for module in ("resvg_py", "fontTools", "brotli"):
        _import_extra(module)


def _import_extra(module: str):
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        message = f"building the art world needs {module}: pip install 'impasto[artworld]', then repeat the command"
        raise UserError(message) from None
