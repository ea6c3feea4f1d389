"""Captions of the art world: template x concept x style x background; scene captions.

A concept or style is an id of the art world (with varying wording) or a text, used unchanged (e.g. a procedural style's
description). All randomness comes from the argument `rng`: `random.Random` or numpy's Generator.
"""

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

from impasto.artworld.colours import BACKGROUNDS
from impasto.artworld.world import load_meta

__all__ = [
    "BACKGROUNDS",
    "caption",
    "choose",
    "join_labels",
    "prompt",
    "scene_caption",
    "style_description",
    "with_article",
]

# {a}: the concept with its article, {c}: without, {s}: the style's description. The first is the form of prompts.
TEMPLATES = (
    "{c}, {s}",
    "{a}, {s}",
    "{s}: {c}",
    "{s}, {c}",
    "a drawing of {a}, {s}",
    "an icon of {a}, {s}",
    "a picture of {a} in the style of {s}",
    "{a} in the style of {s}",
    "{c} drawn as {s}",
)
LONGEST = 26  # words and punctuation marks; fits 32 tokens although some words are split
T = TypeVar("T")


class Random(Protocol):
    """`random.Random` or `numpy.random.Generator`."""

    def random(self) -> float: ...


def prompt(label: str, description: str) -> str:
    """ "{label}, {description}": the form of prompts and of most captions."""
    return f"{label}, {description}"


def caption(
    concept: int | str,
    style: int | str | None,
    rng: Random,
    background: str | None = None,
    plain_form: float = 0.8,
    plain_label: float = 0.7,
    keyword: float = 0.1,
) -> str:
    """One caption, such as "a bullseye, flat minimal vector sticker without outlines, on a navy background".

    concept: id (label or one of its other captions, sometimes with a keyword) or text.
    style: id (one of its two descriptions), text, or None for a caption without style.
    background: a colour's name, or None to omit it.
    plain_form: share of captions of the form "{concept}, {style}"; the others use the other templates.
    plain_label: share that names the concept by its label. keyword: share that adds one of its keywords.
    """
    thing = concept if isinstance(concept, str) else _wording(concept, rng, plain_label)
    template = TEMPLATES[0] if rng.random() < plain_form else choose(TEMPLATES[1:], rng)
    extra = ""
    if not isinstance(concept, str) and rng.random() < keyword:
        extra = " (" + choose(load_meta()["concepts"][concept]["keywords"] or [thing], rng) + ")"
    description = style_description(style, rng)
    ground = "" if background is None else f", on {with_article(background)} background"
    if description is None:
        template = "{a}" if template != TEMPLATES[0] else "{c}"
    text = template.format(c=thing + extra, a=with_article(thing) + extra, s=description) + ground
    if description is None or len(pieces(text)) <= LONGEST:
        return text
    label = thing if isinstance(concept, str) else load_meta()["concepts"][concept]["label"]
    shorter = (prompt(thing, description) + ground, prompt(label, description) + ground, prompt(label, description))
    return next((text for text in shorter if len(pieces(text)) <= LONGEST), shorter[-1])


def style_description(style: int | str | None, rng: Random) -> str | None:
    """One of the two descriptions of a style given by id; a text or None is returned unchanged."""
    return (
        style if style is None or isinstance(style, str) else choose(load_meta()["styles"][style]["descriptions"], rng)
    )


def scene_caption(
    concepts: Sequence[int | str], style: int | str | None, rng: Random, background: str | None = None
) -> str:
    """ "a rocket, a cactus and a star, {style}, on a navy background"; by labels only, to keep it short."""
    labels = [thing if isinstance(thing, str) else load_meta()["concepts"][thing]["label"] for thing in concepts]
    description = style_description(style, rng)
    ground = "" if background is None else f", on {with_article(background)} background"
    text = join_labels(labels)
    return text + (f", {description}" if description else "") + ground


def join_labels(labels: Sequence[str]) -> str:
    """ "a rocket, a cactus and a star": each with its article."""
    things = [with_article(label) for label in labels]
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def pieces(text: str) -> list[str]:
    """Words and punctuation marks, about one token each."""
    return re.findall(r"[^\W_]+|[^\w\s]", text)


def choose(items: Sequence[T], rng: Random) -> T:
    """A uniformly random item."""
    return items[min(int(rng.random() * len(items)), len(items) - 1)]


def _wording(concept: int, rng: Random, plain_label: float) -> str:
    entry = load_meta()["concepts"][concept]
    return entry["label"] if rng.random() < plain_label else choose(entry["captions"], rng)


# Articles by rules, checked on all 1,194 labels.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAIL = re.compile(r" (?:with|without|of|on|in|at|over|behind|showing|facing|not|done|tilted|and|or) ")
_SINGULAR_S = _words(
    "rhinoceros hippopotamus octopus lotus hibiscus cactus glass hourglass compass bus trolleybus minibus dress abacus "
    "walrus platypus princess boss cross hibiscus virus"
)
_BARE = _words(  # mass nouns, games, adjectives, and plurals without an s
    "rice bread popcorn butter salt bacon sushi oden mate ice food garlic broccoli spaghetti custard sake fog wood "
    "camping tennis bowling badminton lacrosse pong hockey soap yarn thread dna rain snow money hair honey milk beer "
    "coffee tea water meat music e-mail cooking zzz curry fondue clothes tofu pasta luggage breast-feeding foggy "
    "locked unlocked dizzy star-struck voltage together away up down laughing people dice mice feet teeth children "
    "construction"
)
_NAMES = ("mount ", "santa ", "mrs. ", "mx ", "tokyo ", "people ")
_THE = ("milky way", "statue of liberty", "kaaba", "sun")
_ONE = ("person ", "face ", "head ", "family ", "hand ", "index ", "page ")  # "face holding back tears" is singular
_AN = re.compile(r"[aeiou]|hour|honest|x-ray|mri|sos", re.I)
_A = re.compile(r"uni|use|usa|ufo|uk|eu|ew|one", re.I)


def with_article(noun: str) -> str:
    """ "a rocket", "an hourglass", "the sun"; no article for plurals, mass nouns, names: "skis", "popcorn"."""
    if not noun or noun.startswith(_NAMES):
        return noun
    if noun in _THE:
        return f"the {noun}"
    head = _TAIL.split(f"{noun} ")[0].split()[-1]
    plural = head.endswith("s") and not head.endswith("'s") and head not in _SINGULAR_S
    if (plural or head in _BARE) and not noun.startswith(_ONE):
        return noun
    return f"{'an' if _AN.match(noun) and not _A.match(noun) else 'a'} {noun}"
