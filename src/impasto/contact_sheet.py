"""Contact sheets: labelled rows of images as one image."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, CARD = "#f6f4ef", "#23211d", "#77726a", "#ffffff"


def sheet(
    rows: Mapping[str, Sequence[Image.Image | None]],
    columns: Sequence[str],
    cell: int = 112,
    wrap: int = 12,
    title: str = "",
    reference: Image.Image | None = None,
) -> Image.Image:
    """The sheet of `rows` (label -> one image per column, None: an empty cell), RGB.

    cell: side of an image in pixels; wrap: columns per block, further columns go to a new block below; title and
    reference: a wrapped text and an image at the top.
    Raises ValueError when a row's length differs from `columns`, or without rows or columns.
    """
    if not rows or not columns:
        raise ValueError("a sheet needs at least one row and one column")
    for label, pictures in rows.items():
        if len(pictures) != len(columns):
            raise ValueError(f"row {label!r} has {len(pictures)} images for {len(columns)} columns")
    gap, font = max(4, cell // 16), _font(max(11, cell // 8))
    left = max(int(font.getlength(label)) for label in rows) + 4 * gap
    head = _lines(columns, font, cell) * _height(font) + 2 * gap
    block = head + len(rows) * (cell + gap) + 3 * gap
    blocks = [range(start, min(start + wrap, len(columns))) for start in range(0, len(columns), wrap)]
    start = left + cell + 2 * gap if reference is not None else 2 * gap  # of the title
    title_width = start + min(int(font.getlength(title)) + 1, 3 * cell) + 2 * gap if title else 0
    width = max(left + min(wrap, len(columns)) * (cell + gap) + 2 * gap, title_width)
    title_lines = _wrapped(title, font, width - start - 2 * gap)
    header = max(cell if reference is not None else 0, len(title_lines) * _height(font))
    top = 2 * gap + (header + 3 * gap if header else 0)
    canvas = Image.new("RGB", (width, top + len(blocks) * block), PAPER)
    draw = ImageDraw.Draw(canvas)
    if reference is not None:
        canvas.paste(fit(reference, cell), (left, 2 * gap))
    for i, line in enumerate(title_lines):
        y = 2 * gap + header // 2 + (2 * i - len(title_lines) + 1) * _height(font) // 2
        draw.text((start, y), line, INK, font=font, anchor="lm")
    for i, block_columns in enumerate(blocks):
        _block(canvas, draw, rows, columns, block_columns, (left, top + i * block + head), cell, gap, font)
    return canvas


def _block(canvas, draw, rows, columns, indices, origin, cell, gap, font) -> None:
    left, top = origin
    for x, index in enumerate(indices):
        centre = left + x * (cell + gap) + cell // 2
        lines = _wrapped(columns[index], font, cell)
        for n, line in enumerate(lines):
            y = top - gap - (len(lines) - n) * _height(font)
            draw.text((centre, y), line, INK, font=font, anchor="ma")
    for y, (label, pictures) in enumerate(rows.items()):
        row = top + y * (cell + gap)
        draw.text((2 * gap, row + cell // 2), label, FAINT, font=font, anchor="lm")
        for x, index in enumerate(indices):
            corner = (left + x * (cell + gap), row)
            picture = pictures[index]
            if picture is not None:
                canvas.paste(fit(picture, cell), corner)
            else:
                draw.rectangle((*corner, corner[0] + cell - 1, corner[1] + cell - 1), outline="#dcd8cf")


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The image fitted into a white square of `side` pixels, keeping its aspect ratio."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGB", (side, side), CARD)
    square.paste(
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2)
    )
    return square


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType: labels cannot be drawn")
    return font


def _height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def _lines(texts: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> int:
    return max(len(_wrapped(text, font, width)) for text in texts)
