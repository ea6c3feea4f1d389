"""Instruments with known answers: judges that read what they say from the pixels, an encoder of mean colours; and
pictures prepared in one tensor."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageStat, PngImagePlugin

from impasto.artworld import load_meta
from impasto.data.buckets import views
from impasto.data.items import Item
from impasto.data.pictures import Picture
from impasto.data.prepare import Prepared, prepare_items, stack, text
from impasto.evaluation.encoders import Encoder
from impasto.evaluation.samples import to_tensor


class FakeJudges:
    """The top left pixel decides: red / 10 is the style, (green, blue) the concept as 256 * green + blue."""

    concept_threshold = 0.5

    def __init__(self) -> None:
        meta = load_meta()
        self.card = {}
        self.style_names = list(meta["style_names"])
        self.kinds = [style["kind"] for style in meta["styles"]]
        self.labels = [concept["label"] for concept in meta["concepts"]]

    def style(self, images):
        red = (images[:, 0, 0, 0] * 255).round().long() // 10
        probabilities = torch.full((len(images), 19), 0.1 / 18)
        probabilities[torch.arange(len(images)), red.clamp(max=18)] = 0.9
        return probabilities

    def concept(self, images):
        images = to_tensor(images) if isinstance(images, list) else images
        code = (images[:, 1:, 0, 0] * 255).round().long()
        which = (code[:, 0] * 256 + code[:, 1]).clamp(max=1193)
        probabilities = torch.linspace(0.2, 0.1, 1194).repeat(len(images), 1)
        probabilities[torch.arange(len(images)), which] = 0.9
        return probabilities

    def style_features(self, images):
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 0.01, dim=-1)


class FakeEncoder(Encoder):
    """Unit vectors: the mean colour for images, (1, 1, 1) / sqrt(3) for every text."""

    def __init__(self) -> None:
        super().__init__("fake", None, None, None)

    def images(self, images):
        colours = [list(ImageStat.Stat(image.convert("RGB")).mean) for image in images]
        return torch.nn.functional.normalize(torch.tensor(colours) + 1, dim=-1)

    def texts(self, texts):
        return torch.ones(len(texts), 3) / 3**0.5


def draw(path: Path, style: int, concept: int, size: int = 128, **meta) -> Path:
    """A PNG that the fake judges take for that style and concept; `meta` goes into its impasto chunk."""
    info = PngImagePlugin.PngInfo()
    if meta:
        info.add_text("impasto", json.dumps(meta))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (style * 10 + 5, concept // 256, concept % 256)).save(path, pnginfo=info)
    return path


def prepare(family, pairs, size) -> Prepared:
    """The middle squares of (reference, caption) pairs: row i of x_NCHW, row i of each condition."""
    items = []
    for reference, caption in pairs:
        picture = Picture(reference.path, reference.sha256, *reference.image.size)
        middle = views(picture.width, picture.height, (size, size), 1, False, picture.sha256)
        items.append(Item(picture, caption, (size, size), middle))
    x = torch.stack(list(prepare_items(family, items).x))
    conds = {length: stack([text(family, caption, length) for _, caption in pairs]) for length in family.text_lengths}
    return Prepared(x, conds, dict(family.text_lengths))
