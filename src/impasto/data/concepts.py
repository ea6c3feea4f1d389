"""Concepts of a reference image: the things and attributes that its caption names, their regions and their prompts.

FineStyle (Zhang et al., NeurIPS 2024; pairs as in tuananhbui89.github.io, "FineStyle", 2025) turns one image into
several training pairs: a *thing* is cropped, an *attribute* (background, medium) keeps the whole image; the text is

    {concept} in {style words} style

in the form of the caption itself: "a rocket and a lion, flat vector art" gives "rocket, flat vector art".

`concepts.json` holds the concepts of one image. It may be edited by hand, and is validated when it is read.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from impasto.coerce import convert
from impasto.data.captions import names_style
from impasto.data.pictures import Picture
from impasto.errors import UserError, nearest
from impasto.files import atomic, read_object

FILE = "concepts.json"
Kind = Literal["thing", "attribute"]
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two exclusive."""
WHOLE_SHARE = 0.95  # of the image: a region this large is the whole image
SAME_IOU = 0.8  # of two regions: the same region
SHARED = 0.5  # of the smaller of two regions within the other: worth a warning

ATTRIBUTE_HEADS = """
background backgrounds backdrop lighting shading colors colours texture textures outlines lines strokes brushstrokes
contours art rendering
"""
COLOURS = "black white grey gray red orange yellow green blue purple violet pink brown gold silver"
DETERMINER = r"(?:an?|the|one|two|three|four|five|six|some|several|many)"
# "with" and "on" separate concepts only before a determiner: "cat with wry smile", "heart on fire" are one thing.
RELATION = re.compile(
    rf",?\s+(?:with|on|onto|in front of|in|at|under|below|above|behind|beside|near|next to|against|holding|wearing)"
    rf"\s+(?={DETERMINER}\s)"
)
AND = re.compile(rf",?\s+and\s+(?={DETERMINER}\s)")
# "a cat and skis" is two things; "a black and white cat" and "a fork and knife" are one.
PAIRED = "knife arrow arrows bolt saucer chain thread wrench pick pestle pepper spoon"
BARE_LAST = re.compile(
    rf"(?P<first>{DETERMINER}\s+(?!(?:{'|'.join(COLOURS.split())})\s+and).+?)\s+and\s+"
    rf"(?P<last>(?!(?:{'|'.join(PAIRED.split())})$).+)",
    re.I,
)
LEADING = re.compile(r"^(?:(?:and|with|on|in)\s+)?(?:an?|the|some|several|many)\s+", re.I)
FRAMING = re.compile(
    r"^(?:an?|the)\s+(?:drawing|picture|painting|image|icon|illustration|photo|sketch)\s+(?:of|showing)\s+"
)
IN_STYLE = re.compile(r"(?:^|,?\s+)in\s+(?:an?\s+|the\s+)?(?P<words>(?:(?!\sin\s)[^,])+?)\s+style\b", re.I)
IN_STYLE_OF = re.compile(
    rf"(?:^|,?\s+)in\s+the\s+style\s+of\s+(?P<words>.+?)(?=,?\s+(?:on|with)\s+{DETERMINER}\s|$)", re.I
)


@dataclass(frozen=True)
class Concept:
    """A phrase of the caption ("rocket", "white background") and where it is.

    box: its region in the image, None is the whole image. score: of the region, in the unit of its finder.
    """

    phrase: str
    kind: Kind = "thing"
    box: Box | None = None
    score: float | None = None


@dataclass(frozen=True)
class ParsedCaption:
    """style: the style's words. form: text with "{concept}" and "{style}" that every sub-prompt has."""

    concepts: tuple[Concept, ...]
    style: str
    form: str

    @property
    def things(self) -> tuple[str, ...]:
        return tuple(concept.phrase for concept in self.concepts if concept.kind == "thing")


@dataclass(frozen=True)
class ConceptFile:
    """The content of `concepts.json`. image_sha256: of the image file. width, height: upright pixels. finder: what
    found the regions (see `regions.FINDERS`). caption, style, form: as in `ParsedCaption`."""

    image_sha256: str
    width: int
    height: int
    base: str
    finder: str
    caption: str
    style: str
    form: str
    concepts: tuple[Concept, ...]

    def sub_prompt(self, concept: Concept) -> str:
        """The text of the concept's training pair."""
        return sub_prompt(concept.phrase, self.style, self.form)


def sub_prompt(phrase: str, style: str, form: str = "{concept} in {style} style") -> str:
    """ "rocket in flat vector style"; by another form "rocket, flat vector"."""
    return form.format(concept=phrase, style=style)


def parse_caption(caption: str, style: str | None = None, phrases: Sequence[str] = ()) -> ParsedCaption:
    """The concepts and the style words of a caption.

    style: the style words, where they are known; else what "in ... style" or "in the style of ..." names, else the
    parts behind a comma from the first one on that names a style ("a cat, flat vector art"). phrases: the concepts,
    where they are given. Raises UserError for no style words, and for no concept.
    """
    caption = " ".join(caption.split()).rstrip(" .,")
    content, style, form = split_style(caption, style)
    found = [clean(phrase) for phrase in phrases] if phrases else list(split_phrases(content))
    if not any(found):
        raise UserError(
            f"no concept in the caption {caption!r}: name them, as in --concepts 'rocket; teapot; white background'"
        )
    if "" in found:
        raise UserError(f"an empty concept among {'; '.join(phrases)!r}: remove the semicolon")
    repeated = next((phrase for phrase in found if found.count(phrase) > 1), None)
    if repeated:
        raise UserError(f"the concept {repeated!r} is named twice: tell the two apart, as in 'red {repeated}'")
    return ParsedCaption(tuple(Concept(phrase, kind_of(phrase)) for phrase in found), style, form)


def kind_of(phrase: str) -> Kind:
    """ "attribute" for what describes the whole image (background, medium, lighting), by the phrase's last word."""
    return "attribute" if phrase.lower().split()[-1] in ATTRIBUTE_HEADS.split() else "thing"


def split_style(caption: str, style: str | None) -> tuple[str, str, str]:
    """(caption without its style words, style words, form). Raises UserError where it names no style."""
    for pattern, form in (
        (IN_STYLE_OF, "{concept} in the style of {style}"),
        (IN_STYLE, "{concept} in {style} style"),
    ):
        if match := pattern.search(caption):
            words = match["words"]
            if style is None or words.lower() == style.lower():
                return caption[: match.start()] + caption[match.end() :], words, form
    if style is not None:
        at = caption.lower().find(style.lower())
        if at < 0:
            raise UserError(f"the style words {style!r} are not in the caption {caption!r}")
        rest = f"{caption[:at].rstrip(' ,:')}, {caption[at + len(style) :].lstrip(' ,')}".strip(" ,")
        return rest, style, "{concept}, {style}"
    parts = re.split(r",\s+", caption)
    first = next((i for i, part in enumerate(parts) if i and names_style(part) and not LEADING.match(part)), None)
    if first is None:
        raise UserError(f"the caption {caption!r} names no style: end it with 'in ... style', or give --style-words")
    last = next((i for i in range(first, len(parts)) if re.match(rf"on {DETERMINER} ", parts[i])), len(parts))
    return ", ".join(parts[:first] + parts[last:]), ", ".join(parts[first:last]), "{concept}, {style}"


def split_phrases(content: str) -> Iterator[str]:
    """ "a rocket, a teapot and a lion on a white background" -> rocket, teapot, lion, white background."""
    content = FRAMING.sub("", content.strip(" ,"))
    parts = re.split(r",\s+(?:and\s+)?", content)
    for i, part in enumerate(parts):
        for phrase in RELATION.split(part):
            for piece in AND.split(phrase):
                pieces = [piece]
                if match := BARE_LAST.fullmatch(piece):
                    pieces = [match["first"], match["last"]]
                elif i == len(parts) - 1 > 0 and not re.match(rf"{DETERMINER}\s", piece, re.I):
                    pieces = re.split(r"\s+and\s+", piece)  # "skis and popcorn" behind "a rocket, "
                yield from filter(None, map(clean, pieces))


def clean(phrase: str) -> str:
    """Without its article and surrounding punctuation."""
    return LEADING.sub("", phrase.strip(" ,.;"))


# The file


def write_concepts(path: Path, found: ConceptFile) -> None:
    """Write `concepts.json`, atomically."""
    content = {"version": 1, **asdict(found)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_concepts(path: Path, image: Picture | None = None, base: str | None = None) -> ConceptFile:
    """Read and validate `concepts.json`. image, base: those that it has to be of, unless None.

    Raises UserError for a file that cannot be read, of another image or another base, and as `validate`.
    """
    try:
        content = read_object(path)
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist: write it with `impasto concepts find`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    if content.pop("version", 1) != 1:
        raise UserError(f"{str(path)!r} was written by a newer impasto: write it again with `impasto concepts find`")
    found = from_json(content, path)
    if image is not None and found.image_sha256 != image.sha256:
        raise UserError(f"{str(path)!r} is of another image than {str(image.path)!r}: find its concepts again")
    if base is not None and found.base != base:
        raise UserError(f'{str(path)!r} is of the base {found.base!r}, not {base!r}: find again, or edit "base"')
    validate(found, str(path))
    return found


def from_json(content: Mapping[str, Any], path: Path) -> ConceptFile:
    fields = {name: kind for name, kind in ConceptFile.__annotations__.items() if name != "concepts"}
    check_keys(content, [*fields, "concepts"], str(path))
    values = {name: convert(content[name], kind, f"{path}: {name}") for name, kind in fields.items()}
    listed = content["concepts"]
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{str(path)!r} has no concept")
    concepts = []
    for i, one in enumerate(listed, 1):
        where = f"{path}: concept {i}"
        if not isinstance(one, dict):
            raise UserError(f"{where} must be an object with a phrase, not {one!r}")
        check_keys({"phrase": None} | one, list(Concept.__annotations__), where, optional=("kind", "box", "score"))
        phrase = convert(one.get("phrase"), str, f"{where}: phrase").strip()
        kind = convert(one.get("kind", kind_of(phrase or "?")), Kind, f"{where}: kind")
        box, score = one.get("box"), one.get("score")
        if box is not None and not (isinstance(box, list) and len(box) == 4):
            raise UserError(f"{where}: box must be [left, top, right, bottom] or null, not {box!r}")
        box = None if box is None else convert(box, tuple[int, ...], f"{where}: box")
        concepts.append(Concept(phrase, kind, box, None if score is None else convert(score, float, f"{where}: score")))
    return ConceptFile(**values, concepts=tuple(concepts))


def check_keys(content: Mapping[str, Any], known: list[str], where: str, optional: Sequence[str] = ()) -> None:
    for name in content:
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}: {nearest(name, known)}")
    missing = [name for name in known if name not in content and name not in optional]
    if missing:
        raise UserError(f"{where} lacks {', '.join(map(repr, missing))}")


def validate(found: ConceptFile, where: str) -> None:
    """Raise UserError on a region that cannot be used: outside the image, empty, the whole image, or shared by two
    things; warn of things that one region shows together."""
    things = [concept for concept in found.concepts if concept.kind == "thing"]
    for concept in found.concepts:
        if not concept.phrase:
            raise UserError(f"{where}: a concept has no phrase")
        if concept.kind == "attribute" and concept.box is not None:
            raise UserError(f"{where}: {concept.phrase!r} is an attribute of the whole image: its box must be null")
        check_box(concept, found.width, found.height, len(things) > 1, where)
    for a, b in combinations([concept for concept in things if concept.box], 2):
        assert a.box and b.box
        if iou(a.box, b.box) >= SAME_IOU:
            raise UserError(f"{where}: {a.phrase!r} and {b.phrase!r} have the same region: move one, or remove it")
        shared = intersection(a.box, b.box) / min(area(a.box), area(b.box))
        if shared > SHARED:
            warnings.warn(f"the regions of {a.phrase!r} and {b.phrase!r} overlap by {shared:.0%}", stacklevel=2)
    if len(things) == 1 and things[0].box is None:
        warnings.warn(
            f"{things[0].phrase!r} is the only thing: the whole image is used, nothing is scaled", stacklevel=2
        )


def check_box(concept: Concept, width: int, height: int, several: bool, where: str) -> None:
    """Raise UserError on a box outside the image or empty; on a thing among several that has the whole image."""
    if concept.box is None:
        if concept.kind == "thing" and several:
            raise UserError(f"{where}: {concept.phrase!r} has no box: give one, or make it an attribute")
        return
    left, top, right, bottom = concept.box
    if not (left < right and top < bottom):
        raise UserError(f"{where}: the region of {concept.phrase!r} is empty: {list(concept.box)}")
    if left < 0 or top < 0 or right > width or bottom > height:
        size = f"{width} x {height}"
        raise UserError(f"{where}: the box of {concept.phrase!r} is outside the image of {size}: {list(concept.box)}")
    if several and area(concept.box) >= WHOLE_SHARE * width * height:
        raise UserError(f"{where}: the region of {concept.phrase!r} is the whole image: {list(concept.box)}")


def with_boxes(parsed: ParsedCaption, boxes: Sequence[tuple[Box | None, float | None]]) -> tuple[Concept, ...]:
    """The concepts with a region and a score for each thing, in order."""
    given, placed = iter(boxes), []
    for concept in parsed.concepts:
        if concept.kind == "thing":
            box, score = next(given)
            concept = replace(concept, box=box, score=score)
        placed.append(concept)
    return tuple(placed)


def split_list(text: str | None) -> list[str]:
    """Parts between semicolons; a last empty one does not count."""
    return [] if text is None else [part.strip() for part in text.strip().rstrip(";").split(";")]


def parse_boxes(text: str | None) -> list[Box]:
    """ "0,0,64,64; 64,0,128,64" as boxes. Raises UserError for anything else."""
    return [parse_box(part) for part in split_list(text)]


def parse_box(text: str) -> Box:
    try:
        left, top, right, bottom = map(int, text.split(","))
    except ValueError:
        raise UserError(f"a box is left,top,right,bottom in pixels, not {text!r}") from None
    return left, top, right, bottom


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Sequence[float], b: Sequence[float]) -> float:
    """Common area of two boxes in pixels."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]."""
    common = intersection(a, b)
    return common / (area(a) + area(b) - common)
