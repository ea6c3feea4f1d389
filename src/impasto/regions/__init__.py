"""Region finders: where in a reference image is each thing of its caption? FINDERS is the one table of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from impasto.bases import cards, loader
from impasto.data.concepts import Box, ConceptFile, ParsedCaption, parse_caption, sub_prompt, validate, with_boxes
from impasto.data.pictures import look
from impasto.errors import UserError, nearest

if TYPE_CHECKING:
    from impasto.families.base import Family

MOST_THINGS = 8
FINDERS = {
    "boxes": ("impasto.regions.boxes", "the boxes given with --boxes"),
    "error": ("impasto.regions.error", "parts of the image, assigned by the base's denoising error under each phrase"),
    "attention": ("impasto.regions.attention", "where the base's cross-attention looks for a phrase (FineStyle)"),
}
"""Name: module with `find(search) -> regions`, what it goes by."""


@dataclass(frozen=True)
class Region:
    """box: in pixels of the image, None is all of it. score: how sure the finder is, in a unit of its own."""

    box: Box | None = None
    score: float | None = None


@dataclass(frozen=True)
class Search:
    """What a finder goes by. image: RGB. parsed: of the caption. boxes: given ones. The base is loaded when first
    used."""

    image: Image.Image
    caption: str
    parsed: ParsedCaption
    base: str
    boxes: Sequence[Box] = ()
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    given: "Family | None" = field(default=None, compare=False)

    @cached_property
    def family(self) -> "Family":
        return self.given or loader.load(self.base, device=self.device, precision=self.precision)

    @property
    def things(self) -> tuple[str, ...]:
        return self.parsed.things

    @property
    def prompts(self) -> list[str]:
        """The sub-prompt of each thing."""
        return [sub_prompt(thing, self.parsed.style, self.parsed.form) for thing in self.things]


def default_finder(base: str) -> str:
    """Cross-attention of the embedded bases is too weak (docs/results/finestyle/concepts.json)."""
    return "error" if cards.card(base).get("embedded") else "attention"


def finder_function(name: str) -> Callable[[Search], list[Region]]:
    """Raises UserError for an unknown finder."""
    if name not in FINDERS:
        raise UserError(f"unknown finder {name!r}: {nearest(name, list(FINDERS))}")
    return import_module(FINDERS[name][0]).find


def find_concepts(
    image: Path,
    caption: str,
    base: str,
    finder: str | None = None,
    *,
    phrases: Sequence[str] = (),
    style_words: str | None = None,
    boxes: Sequence[Box] = (),
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    family: "Family | None" = None,
) -> ConceptFile:
    """The concepts of an image with their regions.

    finder: a name of FINDERS; "boxes" where boxes are given, else by the base. phrases, style_words: see
    `data.concepts.parse_caption`. family: of the base, where it is loaded already. Raises UserError on bad input.
    """
    finder = finder or ("boxes" if boxes else default_finder(base))
    find, parsed, facts = finder_function(finder), parse_caption(caption, style_words, phrases), look(image)
    if boxes and finder != "boxes":
        raise UserError(f"--boxes are given, and --finder {finder} finds its own: leave one of them out")
    if len(parsed.things) > MOST_THINGS:
        raise UserError(
            f"{len(parsed.things)} things in the caption, at most {MOST_THINGS}: name fewer with --concepts"
        )
    search = Search(facts.load().image, caption, parsed, base, boxes, device, precision, seed, family)
    regions = find(search) if len(parsed.things) > 1 or boxes else [Region() for _ in parsed.things]
    concepts = with_boxes(parsed, [(region.box, region.score) for region in regions])
    size = (facts.width, facts.height)
    found = ConceptFile(facts.sha256, *size, base, finder, caption, parsed.style, parsed.form, concepts)
    validate(found, str(image))
    return found
