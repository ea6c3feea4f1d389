"""A look and how its parameters are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from impasto.artworld.captions import Random, pieces, some
from impasto.artworld.colours import NAMED, RGB, luminance
from impasto.artworld.procedural.paint import pack

# Train styles whose pictures suit a look: with colour areas, with or without outlines; with lines; in one ink.
FLAT = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji")
COLOUR = (*FLAT, "openmoji")
LINE = ("openmoji-black", "noto-emoji-mono")
INK = (*LINE, "emojione-monotone", "fluent-emoji-high-contrast")
LONGEST = 19  # words and punctuation marks of a description, so that a caption fits 32 tokens

Canvas = np.ndarray  # float32 [128, 128, 3], 0..1
Plane = np.ndarray  # float32 [128, 128], 0..1
Words = tuple[str, ...]  # ways to say one thing; "" says nothing
SILENT: Words = ("",)


@dataclass(frozen=True)
class Look:
    """One procedural style with all its parameters fixed.

    family: its name among the families. sources: train styles whose pictures suit it.
    parts: what its description says, most important first and the ground last, each in one or more wordings.
    paint: (uint8 [128, 128, 4], rng) -> canvas.
    """

    family: str
    parts: tuple[Words, ...]
    sources: tuple[str, ...]
    paint: Callable[[np.ndarray, Random], Canvas]

    def __call__(self, rgba: np.ndarray, rng: Random) -> np.ndarray:
        """uint8 [128, 128, 4], straight alpha -> uint8 [128, 128, 3]; `rng` places noise, strokes and tiles."""
        return pack(self.paint(rgba, rng))

    def describe(self, rng: Random) -> str:
        """The description in one of its wordings, such as "glowing neon sign in hot pink, on a dark plum ground"."""
        return _join([some(words, rng) for words in self.parts])

    @property
    def description(self) -> str:
        """The first wording."""
        return _join([words[0] for words in self.parts])


def _join(parts: list[str]) -> str:
    """Comma-separated; what is too long loses its lesser parts, from the last but one to the second."""
    parts = [part for part in parts if part]
    while len(parts) > 2 and len(pieces(", ".join(parts))) > LONGEST:
        del parts[-2]
    return ", ".join(parts)


@dataclass(frozen=True)
class Colour:
    """A named colour, a little off its name: rgb float32 [3] in 0..1."""

    name: str
    rgb: np.ndarray

    @property
    def light(self) -> float:
        return float(self.rgb @ (0.299, 0.587, 0.114))


@dataclass(frozen=True)
class Draw:
    """Draws parameters from `rng`."""

    rng: Random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, *items):
        return some(items, self.rng)

    def colour(self, pool: dict[str, RGB] = NAMED, apart: Sequence[Colour] = (), by: float = 0.3) -> Colour:
        """One of the pool's colours with another name and luminance (by at least `by`) than those of `apart`."""
        others = {other.name: other.light for other in apart}
        far = {
            name: min((abs(luminance(rgb) - light) for light in others.values()), default=1.0)
            for name, rgb in pool.items()
            if name not in others
        }
        good = [name for name, distance in far.items() if distance >= by] or [max(far, key=lambda name: far[name])]
        name = some(good, self.rng)
        jitter = np.array([self.between(-0.03, 0.03) for _ in range(3)], np.float32)
        rgb = np.array(pool[name], np.float32) / 255
        return Colour(name, rgb if name == "white" else np.clip(rgb + jitter, 0, 1))


def only(*names: str) -> dict[str, RGB]:
    """These named colours."""
    return {name: NAMED[name] for name in names}


def without(pool: dict[str, RGB], *names: str) -> dict[str, RGB]:
    """The pool's other colours."""
    return {name: rgb for name, rgb in pool.items() if name not in names}


def said(*colours: Colour) -> str:
    """ "teal, cream and coral"."""
    names = [colour.name for colour in colours]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
