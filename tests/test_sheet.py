"""Contact sheets."""

import pytest
from PIL import Image

from impasto.contact_sheet import fit, sheet

RED, BLUE = Image.new("RGB", (128, 128), "red"), Image.new("RGB", (64, 32), "blue")


def test_sheet_places_cells():
    image = sheet({"one": [RED, None, BLUE], "two": [BLUE, RED, RED]}, ["a", "b", "c"], cell=64, wrap=2)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert (255, 0, 0) in colours and (0, 0, 255) in colours
    reds = sum(n for n, colour in image.getcolors(1 << 20) if colour == (255, 0, 0))
    assert reds == 3 * 64 * 64, "three whole red cells, none cut or covered"


def test_sheet_with_reference_and_wrapping_is_larger():
    plain = sheet({"r": [RED] * 5}, list("abcde"), cell=48, wrap=5)
    wrapped = sheet({"r": [RED] * 5}, list("abcde"), cell=48, wrap=2, title="t", reference=BLUE)
    assert wrapped.width < plain.width and wrapped.height > 3 * 48
    assert wrapped.tobytes() == sheet({"r": [RED] * 5}, list("abcde"), 48, 2, "t", BLUE).tobytes()


@pytest.mark.parametrize("reference", [None, BLUE])
def test_sheet_wraps_long_title(reference):
    """Of one column, where there is least room: its last word is on the sheet, and nothing at the right edge."""
    words = "a rocket with a long tail in the style of woodcut prints; 2: "
    image, other = (sheet({"r": [RED]}, ["1"], 112, title=words + last, reference=reference) for last in ("A", "W"))
    assert image.size == other.size and image.tobytes() != other.tobytes()
    assert len(image.crop((image.width - 2, 0, image.width, image.height)).getcolors()) == 1


def test_fit_keeps_aspect_ratio():
    square = fit(BLUE, 100)
    assert square.getpixel((50, 50)) == (0, 0, 255) and square.getpixel((50, 10)) == (255, 255, 255)


@pytest.mark.parametrize(("rows", "columns"), [({}, ["a"]), ({"r": []}, []), ({"r": [RED]}, ["a", "b"])])
def test_sheet_without_rows_raises(rows, columns):
    with pytest.raises(ValueError):
        sheet(rows, columns)
