"""HTML and SVG as values: text is escaped unless it is already `Html`. The output is well-formed XML as well."""

import base64
import html
import io
import re
from pathlib import Path

from PIL import Image

from impasto.data import references

LARGEST = 512  # pixels; larger pictures are scaled down for the page
NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Html(str):
    """Markup that is safe to insert as it is."""


def el(tag: str, *children: str | None, **attributes: str | int | float | None) -> Html:
    """One element. `class_` is written class, `_` in other names `-`; None children and attributes are left out.

    Characters that no XML may hold become U+FFFD, in children and attributes.
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    given = "".join(
        f' {names[k]}="{html.escape(clean(number(v)), quote=True)}"' for k, v in attributes.items() if v is not None
    )
    inside = "".join(text(child) for child in children if child is not None)
    return Html(f"<{tag}{given}>{inside}</{tag}>" if inside or tag not in VOID else f"<{tag}{given} />")


VOID = {"img", "input", "meta", "br", "hr", "line", "rect", "circle", "path", "polygon", "polyline"}


def text(value: str) -> Html:
    """Escaped text, or `Html` as it is. Characters that no XML may hold become U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(clean(value), quote=False))


def clean(value: str) -> str:
    """With U+FFFD for what no XML may hold: control characters, halves of surrogate pairs, U+FFFE, U+FFFF."""
    return NO_XML.sub("\ufffd", value)


def number(value: str | int | float) -> str:
    """Floats with two decimals at most, so that the page is small and the same everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def data_uri(picture: Image.Image | Path) -> str:
    """A picture as a `data:` address: a small PNG file as it is, else on white, PNG, or WebP when it was scaled down.

    UserError when the file cannot be read as a picture.
    """
    if isinstance(picture, Path):
        data, picture = references.content(picture), references.load(picture).image
        if data.startswith(b"\x89PNG") and max(picture.size) <= LARGEST:
            return _encode(data, "png")
    buffer = io.BytesIO()
    if max(picture.size) > LARGEST:
        picture = picture.copy()
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", quality=90)
        return _encode(buffer.getvalue(), "webp")
    picture.save(buffer, "PNG", optimize=True)
    return _encode(buffer.getvalue(), "png")


def _encode(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(source: Image.Image | Path, alt: str) -> Html:
    """An image that needs no file beside the page; a click enlarges it, another one ends that (style.css)."""
    image = el("img", src=data_uri(source), alt=alt, loading="lazy")
    return el("label", el("input", type="checkbox", aria_label=f"enlarge: {alt}"), image, class_="zoom")


def thumbnail(image: Image.Image, alt: str, side: int = 192) -> Html:
    """As `picture`, but WebP and at most `side` pixels: for pages with hundreds of images."""
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.save(buffer, "WEBP", quality=88)
    tag = el("img", src=_encode(buffer.getvalue(), "webp"), alt=alt, loading="lazy")
    return el("label", el("input", type="checkbox", aria_label=f"enlarge: {alt}"), tag, class_="zoom")


def table(head: list[str], rows: list[list[str]]) -> Html:
    """A table whose first column names the row. On a narrow screen each row is a block, its cells with their headings
    (style.css)."""
    first = el("tr", *(el("th", cell, scope="col") for cell in head))
    body = (
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(el("td", cell, data_label=name) for name, cell in zip(head[1:], row[1:], strict=True)),
        )
        for row in rows
    )
    return el("div", el("table", el("thead", first), el("tbody", *body)), class_="wide")
