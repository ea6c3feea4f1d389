"""HTML and SVG as values: text is escaped unless it is already `Html`. The output is well-formed XML as well."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

LARGEST = 512  # pixels; larger pictures are scaled down for the page


class Html(str):
    """Markup that is safe to insert as it is."""


def el(tag: str, *children: str | None, **attributes: str | int | float | None) -> Html:
    """One element. `class_` is written class, `_` in other names `-`; None children and attributes are left out."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    given = "".join(
        f' {names[k]}="{html.escape(number(v), quote=True)}"' for k, v in attributes.items() if v is not None
    )
    inside = "".join(text(child) for child in children if child is not None)
    return Html(f"<{tag}{given}>{inside}</{tag}>" if inside or tag not in VOID else f"<{tag}{given} />")


VOID = {"img", "meta", "br", "hr", "line", "rect", "circle", "path", "polyline"}


def text(value: str) -> Html:
    """Escaped text, or `Html` as it is. Characters that no XML may hold become U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("".join(c if c >= " " or c in "\t\n" else "\ufffd" for c in value), quote=False))


def number(value: str | int | float) -> str:
    """Floats with two decimals at most, so that the page is small and the same everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def data_uri(picture: Image.Image | Path) -> str:
    """A picture as a `data:` address: a small PNG file as it is, else PNG, or WebP when it was scaled down."""
    if isinstance(picture, Path):
        with Image.open(picture) as file:
            if file.format == "PNG" and max(file.size) <= LARGEST:
                return _encode(picture.read_bytes(), "png")
            picture = file.convert("RGB")
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
    """An <img> that needs no file beside the page."""
    return el("img", src=data_uri(source), alt=alt, loading="lazy")


def table(head: list[str], rows: list[list[str]]) -> Html:
    """A table whose first column names the row; it scrolls sideways by itself on a narrow screen."""
    first = el("tr", *(el("th", cell, scope="col") for cell in head))
    body = (el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows)
    return el("div", el("table", el("thead", first), el("tbody", *body)), class_="wide")
