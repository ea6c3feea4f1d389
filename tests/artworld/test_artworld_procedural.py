"""Procedural looks: every family paints and describes; none names a held-out style."""

import random

import numpy as np
import pytest

from impasto.artworld import ArtWorld, load_meta, load_slice
from impasto.artworld.captions import pieces
from impasto.artworld.procedural import FAMILIES, random_look, sample
from impasto.artworld.procedural.look import _join
from impasto.errors import UserError

META = load_meta()
TRAIN = {META["style_names"][style] for style in META["split"]["train_styles"]}


@pytest.fixture(scope="module")
def art() -> np.ndarray:
    """Two colour images and a line drawing."""
    world = load_slice()
    names = (("streamline-emojis", "cat"), ("fluent-emoji-3d", "rocket"), ("symbola", "cactus"))
    return np.stack([world.rgba[world.index(*name)] for name in names])


@pytest.mark.parametrize("family", FAMILIES)
def test_family_paints_deterministically_and_describes(family, art):
    before = art.copy()
    descriptions = set()
    for seed in range(6):
        look = random_look(random.Random(seed), [family])
        assert look.family == family and set(look.sources) <= TRAIN
        picture = look(art[seed % 3], random.Random(1))
        assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
        assert (picture == look(art[seed % 3], random.Random(1))).all()
        same = random_look(random.Random(seed), [family])
        assert (picture == same(art[seed % 3], random.Random(1))).all() and same.description == look.description
        other = look(art[(seed + 1) % 3], random.Random(1)).astype(int)
        assert np.abs(other - picture).mean() > 2  # different objects give different images
        descriptions |= {look.describe(random.Random(seed)), look.description}
    assert (art == before).all()
    assert len(descriptions) >= 6 and all(descriptions)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_accepts_empty_and_full_images(family):
    for value in (0, 255):
        look = random_look(random.Random(value), [family])
        picture = look(np.full((128, 128, 4), value, np.uint8), random.Random(0))
        assert picture.shape == (128, 128, 3)


def test_random_look_descriptions_are_varied():
    rng = np.random.default_rng(0)
    looks = [random_look(rng) for _ in range(1000)]
    texts = [look.describe(rng) for look in looks]
    assert len(FAMILIES) >= 12 and len(set(texts)) > 900
    assert max(len(pieces(text)) for text in texts) <= 22
    assert len({word for text in texts for word in pieces(text)}) > 220


def test_random_look_descriptions_avoid_held_out_styles():
    rng = random.Random(0)
    texts = " ".join(random_look(rng).describe(rng) for _ in range(600)).lower()
    for word in ("pixel", "bitmap", "engrav", "hatching", "woodcut", "duotone", "sparkle", "3d", "three-dimensional"):
        assert word not in texts
    assert "ground shadow" not in texts and "electric blue" not in texts


def test_sample_uses_sources_of_look(art):
    style = META["style_names"].index
    world = ArtWorld(art, np.array([style("twemoji"), style("noto"), style("unifont")]), np.array([7, 7, 7]), META)
    rgb, text = sample(world, 7, random.Random(0), random_look(random.Random(0), ["outlined"]))
    assert rgb.shape == (128, 128, 3) and text
    rgb, text = sample(
        world, 7, random.Random(0), random_look(random.Random(0), ["block print"])
    )  # no ink drawing here
    assert "print" in text or "stamped" in text
    with pytest.raises(ValueError, match="no image"):
        sample(world, 8, random.Random(0))


def test_join_drops_parts_of_long_descriptions():
    text = _join(
        ["one two three four five six seven eight nine ten", "eleven twelve thirteen", "grainy", "on a red ground"]
    )
    assert text == "one two three four five six seven eight nine ten, eleven twelve thirteen, on a red ground"


def test_random_look_of_unknown_family_raises():
    with pytest.raises(UserError, match="did you mean 'neon'"):
        random_look(random.Random(0), ["neoon"])
