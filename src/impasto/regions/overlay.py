"""An image with the region, the phrase and the score of each of its concepts drawn over it."""

from PIL import Image, ImageDraw, ImageFont

from impasto.data.concepts import ConceptFile

COLOURS = ("#c8372d", "#2f6fb3", "#3f8f3b", "#b07a10", "#7a3fa0", "#0f8c8c", "#b03a7a", "#555555")
SIDE = 640  # pixels that the image's longer side has at least


def overlay(image: Image.Image, found: ConceptFile) -> Image.Image:
    """RGB: the image, enlarged where it is small, and below it a line for each concept."""
    scale = max(1.0, SIDE / max(image.size))
    width, height = (round(side * scale) for side in image.size)
    font = ImageFont.load_default(max(14, width // 40))
    line = round(1.5 * font.size)  # pyright: ignore[reportAttributeAccessIssue]
    canvas = Image.new("RGB", (width, height + line * len(found.concepts) + line // 2), "white")
    canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, concept in enumerate(found.concepts):
        colour = COLOURS[i % len(COLOURS)]
        score = "" if concept.score is None else f", score {concept.score:.3f}"
        where = "the whole image" if concept.box is None else f"{list(concept.box)}{score}"
        draw.text((8, height + line // 4 + i * line), f"{concept.phrase} ({concept.kind}): {where}", colour, font=font)
        if concept.box is not None:
            left, top, right, bottom = (round(value * scale) for value in concept.box)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=3)
            label = draw.textbbox((left + 4, top + 2), concept.phrase, font=font)
            draw.rectangle((left, top, label[2] + 4, label[3] + 4), fill=colour)
            draw.text((left + 4, top + 2), concept.phrase, "white", font=font)
    return canvas
