"""Rendering of the packages' icons against the packaged slice, pixel by pixel."""

import json
from pathlib import Path

import numpy as np
import pytest

from impasto.artworld import load_slice, render

ICONS = json.loads((Path(__file__).parent / "data/icons.json").read_text())
LABELS = {"cat": "cat", "cat-duotone": "cat", "cactus-duotone": "cactus", "rocket-duotone": "rocket", "bus": "bus"}
CASES = [(style, name) for style, icons in ICONS.items() for name in icons["icons"]]


@pytest.fixture(scope="module")
def held_out():
    return load_slice()


@pytest.mark.parametrize(("style", "name"), CASES)
def test_iconify_matches_slice(held_out, style, name):
    files = {"icons.json": json.dumps(ICONS[style]).encode()}
    picture = render.iconify(files, ["icons.json"])(name)
    truth = held_out.rgba[held_out.index(style, LABELS[name])]
    assert picture.dtype == np.uint8 and picture.shape == (128, 128, 4)
    assert np.abs(picture.astype(int) - truth).mean() < 0.5  # 0 with the pinned resvg-py


def test_iconify_follows_aliases_and_defaults():
    square = '<path d="M2 2h12v12H2z"/>'
    icons = {"icons": {"a": {"body": square}}, "aliases": {"b": {"parent": "a"}, "c": {"parent": "b"}}}
    read = render.iconify({"x/icons.json": json.dumps(icons).encode()}, ["icons.json"])
    assert (read("c") == read("a")).all()
    assert read("a")[8:120, 8:120, 3].min() > 250  # fitted to 112 pixels
    assert read("a")[:7].max() == 0


def test_fit_crops_centres_and_keeps_aspect():
    picture = np.zeros((256, 256, 4), np.uint8)
    picture[10:60, 100:200] = 10, 200, 30, 255
    picture[200, 200] = 0, 0, 0, 9  # too faint to belong to the object
    fitted = render.fit(picture)
    rows, columns = (np.flatnonzero((fitted[..., 3] > 128).any(axis)) for axis in (1, 0))
    assert len(columns) == 112 and len(rows) == 56
    assert abs((columns[0] + columns[-1]) / 2 - 63.5) <= 0.5 and abs((rows[0] + rows[-1]) / 2 - 63.5) <= 0.5
    assert np.abs(fitted[64, 64].astype(int) - (10, 200, 30, 255)).max() <= 1
    assert fitted[..., :3][fitted[..., 3] == 0].max() == 0


def test_fit_of_empty_image_raises():
    with pytest.raises(ValueError, match="empty"):
        render.fit(np.zeros((4, 4, 4), np.uint8))


@pytest.fixture(scope="module")
def font() -> bytes:
    """A font of 16 units per em with one glyph of two pixels, at (2, 3) and (5, 4) from the left and the base line."""
    import io

    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for x, y in ((2, 3), (5, 4)):
        pen.moveTo((x, y))
        for corner in ((x, y + 1), (x + 1, y + 1), (x + 1, y)):
            pen.lineTo(corner)
        pen.closePath()
    builder = FontBuilder(16, isTTF=True)
    builder.setupGlyphOrder([".notdef", "dots"])
    builder.setupCharacterMap({0x1F600: "dots"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "dots": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (16, 0), "dots": (16, 2)})
    builder.setupHorizontalHeader(ascent=14, descent=-2)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupPost()
    buffer = io.BytesIO()
    builder.save(buffer)
    return buffer.getvalue()


def test_pixel_font_keeps_pixel_grid(font):
    picture = render.pixel_font({"usr/test.otf": font}, ["test.otf"])("U+1F600")
    assert set(np.unique(picture)) == {0, 255}
    grid = picture[::8, ::8, 3] > 0
    assert (np.kron(grid, np.ones((8, 8), bool)) == (picture[..., 3] > 0)).all()
    assert np.argwhere(grid).tolist() == [[7, 9], [8, 6]]  # four columns by two rows, centred; fonts point upwards


def test_outline_font_is_fitted(font):
    picture = render.outline_font({"usr/test.ttf": font}, ["test.ttf"])("U+1F600")
    rows, columns = (np.flatnonzero((picture[..., 3] > 128).any(axis)) for axis in (1, 0))
    assert abs(columns[-1] - columns[0] - 111) <= 1 and abs(rows[-1] - rows[0] - 55) <= 1
