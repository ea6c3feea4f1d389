"""The images that the embedded models are pretrained on, with the data for random captions.

Four kinds, all made from the train styles alone: an object on white, on a coloured background, in a random procedural
style (never an imitation of a held-out one), and a scene of two to four objects. A pool is a function of its seed; each
session uses another one, so that procedural looks and scenes vary.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from impasto.artworld import ArtWorld, load, load_meta
from impasto.artworld.captions import BACKGROUNDS, caption, pieces, scene_caption, style_description
from impasto.artworld.procedural import sample as procedural
from impasto.artworld.scenes import compose
from impasto.artworld.world import over

KINDS = ("plain", "ground", "procedural", "scene")
NO_STYLE_SHARE, TRUNCATED_SHARE, TAIL_SHARE = 0.08, 0.15, 0.15
"""Shares of captions without a style, with a part of the style's description, and with an uninformative tail.

A base has to generate a concept by its name alone, beside descriptions of unknown styles, and in prompt switching; and
the two descriptions of each train style would be learnt as one token each. Without tails only scene captions would have
clauses joined by "and a", so that "a boat, an ink drawing with a red border and a pale wash" would be taken for a scene
of several objects."""

ADJECTIVES = ("bold", "broad", "bright", "calm", "clean", "clear", "cool", "crisp", "even", "fine", "friendly",
              "gentle", "light", "lively", "matte", "modest", "neat", "pale", "plain", "quiet", "rich", "sharp",
              "simple", "smooth", "soft", "strong", "subtle", "thin", "tidy", "warm")  # fmt: skip
STYLE_NOUNS = ("accent", "border", "colour", "contour", "contrast", "detail", "edge", "effect", "feel", "gradient",
              "highlight", "layout", "line", "mood", "outline", "palette", "pattern", "rhythm", "shade", "shape",
              "silhouette", "stroke", "surface", "texture", "tint", "tone")  # fmt: skip
TAILS = (" and a {} {}", " with a {} {}", " with {} {}s and a {} {}", ", a {} {} and a {} {}", ", a {} {}",
         ", {} {} and {} {}s", ", {} {}s and {} {}s", " and {} {}s")  # fmt: skip
TAIL_ROOM = 14  # maximum words and punctuation marks of a description before a tail


@dataclass(frozen=True)
class Entry:
    """The content of one image: concept ids, style (id or description), name of the background."""

    kind: str
    concepts: tuple[int, ...]
    style: int | str
    background: str | None = None

    def caption(self, rng: random.Random) -> str:
        """A random caption; see NO_STYLE_SHARE, TRUNCATED_SHARE and TAIL_SHARE."""
        share, style = rng.random(), self.style
        if share < NO_STYLE_SHARE:
            style = None
        elif share < NO_STYLE_SHARE + TRUNCATED_SHARE:
            style = truncate_description(style_description(style, rng) or "", rng)
        elif share < NO_STYLE_SHARE + TRUNCATED_SHARE + TAIL_SHARE:
            style = add_tail(style_description(style, rng) or "", rng)
        if self.kind == "scene":
            return scene_caption(self.concepts, style, rng, self.background)
        return caption(self.concepts[0], style, rng, self.background)


@dataclass
class Pool:
    """`rgb` uint8 [n, 128, 128, 3] and `entries` [n]; `rows[kind]`: indices of each kind."""

    rgb: np.ndarray
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        kinds = np.array([entry.kind for entry in self.entries])
        self.rows = {kind: np.flatnonzero(kinds == kind) for kind in KINDS}

    def draw(self, n: int, shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
        """Indices [n] of random images, with the kinds in the proportions `shares` (normalised, without empty
        kinds)."""
        rows = {kind: r for kind, r in self.rows.items() if len(r) and shares.get(kind, 0) > 0}
        weight = np.array([shares[kind] for kind in rows])
        which = rng.choice(len(rows), size=n, p=weight / weight.sum())
        u, out = rng.random(n), np.empty(n, np.int64)
        for k, group in enumerate(rows.values()):
            mine = which == k
            out[mine] = group[(u[mine] * len(group)).astype(np.int64)]
        return out


def truncate_description(description: str, rng: random.Random) -> str:
    """Two or more successive words of a description, not all of them; one of two words is returned unchanged."""
    words = description.split()
    if len(words) < 3:
        return description
    n = rng.randint(2, len(words) - 1)
    start = rng.randint(0, len(words) - n)
    return " ".join(words[start : start + n]).strip(",")


def add_tail(description: str, rng: random.Random) -> str:
    """The description with a random clause, such as " and a calm texture"; a long one is returned unchanged.

    The clause precedes a final part that names the background ("on a navy background").
    """
    if len(pieces(description)) > TAIL_ROOM:
        return description
    tail = rng.choice(TAILS)
    tail = tail.format(*(rng.choice(ADJECTIVES if i % 2 == 0 else STYLE_NOUNS) for i in range(tail.count("{}"))))
    head, comma, ground = description.rpartition(", ")
    if comma and ground.startswith(("on ", "against ", "over ", "in ")):
        return f"{head}{tail}, {ground}"
    return description + tail


def train_world(concepts: Sequence[int] | None = None) -> ArtWorld:
    """The art world's train styles, the only ones used in pretraining."""
    return load(styles=load_meta()["split"]["train_styles"], concepts=concepts)


def build_pool(
    concepts: Sequence[int] | None = None,
    ground: float = 0.5,
    procedurals: float = 2.0,
    scenes: float = 1.0,
    seed: int = 0,
    world: ArtWorld | None = None,
    plain: bool = True,
) -> Pool:
    """All (train style, concept) images on white, and `ground`, `procedurals` and `scenes` times as many of the others.

    plain: False leaves out the images on white. A scene has one style; its objects do not overlap, at 30 to 60 % of the
    canvas.
    """
    world = world or train_world(concepts)
    n = len(world)
    rng = random.Random(seed)
    by_style = {style: np.flatnonzero(world.style_id == style) for style in np.unique(world.style_id)}
    counts = {"ground": round(ground * n), "procedural": round(procedurals * n), "scene": round(scenes * n)}
    rgb = np.empty((plain * n + sum(counts.values()), *world.rgba.shape[1:3], 3), np.uint8)
    entries: list[Entry] = []
    if plain:
        rgb[:n] = world.rgb()
        entries += [Entry("plain", (int(c),), int(s)) for c, s in zip(world.concept_id, world.style_id, strict=True)]
    for _ in range(counts["ground"]):
        i = rng.randrange(n)
        name = visible_ground([world.rgba[i]], rng)
        rgb[len(entries)] = over(world.rgba[i], BACKGROUNDS[name])
        entries.append(Entry("ground", (int(world.concept_id[i]),), int(world.style_id[i]), name))
    for _ in range(counts["procedural"]):
        concept = int(world.concept_id[rng.randrange(n)])
        rgb[len(entries)], description = procedural(world, concept, rng)
        entries.append(Entry("procedural", (concept,), description))
    for _ in range(counts["scene"]):
        style = int(rng.choice(list(by_style)))
        things = rng.sample([int(i) for i in by_style[style]], rng.choice((2, 2, 2, 3, 3, 4)))
        name = visible_ground([world.rgba[i] for i in things], rng) if rng.random() < 0.3 else None
        colour = BACKGROUNDS[name] if name else (255, 255, 255)
        rgb[len(entries)] = compose([world.rgba[i] for i in things], 128, rng, side=(0.3, 0.6), background=colour).rgb
        entries.append(Entry("scene", tuple(int(world.concept_id[i]) for i in things), style, name))
    return Pool(rgb, tuple(entries))


def visible_ground(pictures: Sequence[np.ndarray], rng: random.Random) -> str:
    """The name of a random background in contrast to all `pictures` (half of each differs by more than 60 of 255)."""
    while True:
        name = rng.choice(sorted(BACKGROUNDS))
        if all(_stands_out(rgba, BACKGROUNDS[name]) for rgba in pictures):
            return name


def _stands_out(rgba: np.ndarray, colour: Sequence[int]) -> bool:
    inside = rgba[::2, ::2].reshape(-1, 4)
    inside = inside[inside[:, 3] > 127, :3].astype(np.int32)
    return len(inside) > 0 and bool((np.abs(inside - np.asarray(colour)).max(1) > 60).mean() > 0.5)
