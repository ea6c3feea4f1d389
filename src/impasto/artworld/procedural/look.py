"""Looks and the sampling of their parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from impasto.artworld.captions import Random, choose, pieces
from impasto.artworld.colours import NAMED, RGB, luminance
from impasto.artworld.procedural.paint import pack

# Train styles suited as sources: with colour areas, without or with outlines; line drawings; one-colour drawings.
FLAT = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji")
COLOUR = (*FLAT, "openmoji")
LINE = ("openmoji-black", "noto-emoji-mono")
INK = (*LINE, "emojione-monotone", "fluent-emoji-high-contrast")
LONGEST = 19  # words and punctuation marks of a description, for captions of at most 32 tokens

Canvas = np.ndarray  # float32 [128, 128, 3], 0..1
Plane = np.ndarray  # float32 [128, 128], 0..1
Words = tuple[str, ...]  # alternative wordings; "" omits the part
NO_WORDS: Words = ("",)


@dataclass(frozen=True)
class Look:
    """One procedural style with fixed parameters.

    family: its name among the families. sources: train styles suited as source images.
    parts: the parts of its description, most important first, the ground last, each in one or more wordings.
    paint: (uint8 [128, 128, 4], rng) -> canvas.
    """

    family: str
    parts: tuple[Words, ...]
    sources: tuple[str, ...]
    paint: Callable[[np.ndarray, Random], Canvas]

    def __call__(self, rgba: np.ndarray, rng: Random) -> np.ndarray:
        """uint8 [128, 128, 4], straight alpha -> uint8 [128, 128, 3]; rng: for noise, strokes and tiles."""
        return pack(self.paint(rgba, rng))

    def describe(self, rng: Random) -> str:
        """A description in random wording, such as "glowing neon sign in hot pink, on a dark plum ground"."""
        return _join([choose(words, rng) for words in self.parts])

    @property
    def description(self) -> str:
        """The description in the first wording of each part."""
        return _join([words[0] for words in self.parts])


def _join(parts: list[str]) -> str:
    """Comma-separated; while longer than LONGEST, the last part but one is dropped, down to two parts."""
    parts = [part for part in parts if part]
    while len(parts) > 2 and len(pieces(", ".join(parts))) > LONGEST:
        del parts[-2]
    return ", ".join(parts)


@dataclass(frozen=True)
class Colour:
    """A named colour with slight jitter: rgb float32 [3] in 0..1."""

    name: str
    rgb: np.ndarray

    @property
    def light(self) -> float:
        return float(self.rgb @ (0.299, 0.587, 0.114))


@dataclass(frozen=True)
class Draw:
    """Samples parameters from `rng`."""

    rng: Random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, *items):
        return choose(items, self.rng)

    def colour(self, pool: dict[str, RGB] = NAMED, apart: Sequence[Colour] = (), by: float = 0.3) -> Colour:
        """A colour of the pool that differs in name and by at least `by` in luminance from all of `apart`."""
        others = {other.name: other.light for other in apart}
        far = {
            name: min((abs(luminance(rgb) - light) for light in others.values()), default=1.0)
            for name, rgb in pool.items()
            if name not in others
        }
        good = [name for name, distance in far.items() if distance >= by] or [max(far, key=lambda name: far[name])]
        name = choose(good, self.rng)
        jitter = np.array([self.between(-0.03, 0.03) for _ in range(3)], np.float32)
        rgb = np.array(pool[name], np.float32) / 255
        return Colour(name, rgb if name == "white" else np.clip(rgb + jitter, 0, 1))


def only(*names: str) -> dict[str, RGB]:
    """The pool of these named colours."""
    return {name: NAMED[name] for name in names}


def without(pool: dict[str, RGB], *names: str) -> dict[str, RGB]:
    """The pool except for these names."""
    return {name: rgb for name, rgb in pool.items() if name not in names}


def join_names(*colours: Colour) -> str:
    """ "teal, cream and coral"."""
    names = [colour.name for colour in colours]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
