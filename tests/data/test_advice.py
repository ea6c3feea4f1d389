"""Advice: what is said, and that nothing is said without a reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from impasto.data.advice import advise, content
from impasto.data.config import DataConfig
from impasto.data.items import Item
from impasto.data.pictures import Picture, difference_hash

SEVERAL = ["a rocket", "two cats on a sofa", "a street at night", "a cup"]


def items_of(captions, hashes=None):
    hashes = hashes or [0] * len(captions)
    pictures = [Picture(Path(f"{i}.png"), str(i), 16, 16, dhash) for i, dhash in enumerate(hashes)]
    return [Item(picture, caption, (16, 16), ()) for picture, caption in zip(pictures, captions, strict=True)]


def said(captions, hashes=None, folder=True, prior=False, preserved=(), **settings):
    image = (Path() if folder else Path("a.png"),)
    return advise(items_of(captions, hashes), DataConfig(image=image, **settings), prior, preserved)


@pytest.mark.parametrize(
    "captions",
    [
        [f"{thing} in neon sign style" for thing in SEVERAL],
        [f"neon sign style, {thing}" for thing in SEVERAL],
        [f"{thing}, pixel art" for thing in SEVERAL],
        ["a rocket in neon sign style"],
        ["a red car in neon sign style", "a red cat in neon sign style", "a blue rose in neon sign style"],
    ],
)
def test_good_captions_need_no_advice(captions):
    assert said(captions) == []
    assert said([f"{caption}, wibble" for caption in SEVERAL], trigger="wibble") == []


def test_a_style_that_nothing_calls():
    (line,) = said(["a rocket in ink style", "a cat", "a cup", "a rose", "a star"])
    assert line.startswith("4 of 5 captions (1.png, 2.png, 3.png, ..) name no style") and "--trigger" in line
    (line,) = said(["a rocket, wibble", "a cat"], trigger="wibble")
    assert "1 of 2 captions (1.png) lack the trigger 'wibble'" in line and "--caption-prefix '[trigger],'" in line
    assert said(["a cat"], folder=False) == []  # there `captions.check` reports it


def test_a_style_that_is_described_away():
    captions = [f"{thing} with thick outlines and bright brushstrokes, wibble" for thing in SEVERAL]
    (line,) = said(captions, trigger="wibble")
    assert "(brushstrokes, outlines)" in line and "instead of 'wibble'" in line and "leave them out" in line
    (line,) = said([f"a pink {i} in neon sign style" for i in ("cat", "cup", "car", "rose")])
    assert "(pink)" in line
    assert said([f"{thing} in pink neon style" for thing in SEVERAL]) == []  # the style's own name
    assert said([f"{thing}, pink neon" for thing in SEVERAL], trigger="pink neon") == []


def test_the_same_thing_in_all():
    (line,) = said(["a red rocket in ink style", "two rockets and a rocket in ink style", "rocket at night, ink style"])
    assert line.startswith("all 3 captions say 'rocket'") and "--prior.weight" in line
    (line,) = said(["a rocket in ink style"] * 3)
    assert "'rocket'" in line
    (line,) = said(["a rocket in ink style"] * 3, prior=True)
    assert "'rocket'" in line and "--prior.weight" not in line  # it is on
    assert said(["a rocket in ink style"] * 2) == []
    assert said(["wibble"] * 5, trigger="wibble") == []


def test_nearly_the_same_pictures():
    base = 0x0F0F33335555AAAA
    (line,) = said([f"{thing} in ink style" for thing in SEVERAL], [base, ~base, base ^ 0b101, 0])
    assert line.startswith("1 pair of pictures looks nearly the same (0.png, 2.png)") and "keep one" in line
    assert (
        said([f"{thing} in ink style" for thing in SEVERAL], [base, ~base, base ^ 0b1111, base << 1 & 2**63 - 1]) == []
    )
    assert said([f"{thing} in ink style" for thing in SEVERAL]) == []  # flat pictures all have the hash 0


def test_the_hash_sees_content_not_size():
    def disc(size, x, colour="white"):
        image = Image.effect_noise((size, size), 0).convert("RGB")
        ImageDraw.Draw(image).ellipse((x * size, 0.2 * size, (x + 0.5) * size, 0.9 * size), fill=colour)
        return difference_hash(image)

    def distance(a, b):
        return int(np.bitwise_count(np.array([a ^ b]).view(np.uint64))[0])

    assert distance(disc(64, 0.1), disc(200, 0.1)) <= 3 < distance(disc(64, 0.1), disc(64, 0.4))
    assert difference_hash(Image.new("RGB", (30, 20), "red")) == 0
    ramp = Image.linear_gradient("L").rotate(90)  # darker to the right or brighter: all bits or none
    assert {difference_hash(ramp), difference_hash(ramp.rotate(180))} == {0, -1}


def test_the_words_that_say_what_is_shown():
    assert content("A Red rocket in neon sign style, at night", "") == ["a", "red", "rocket", "at", "night"]
    assert content("wibble style picture, a cat", "wibble style") == ["picture", "a", "cat"]


def test_class_of_a_subject_that_the_prior_preserves_is_no_advice():
    captions = ["a wibble dog", "a wibble dog on grass", "a wibble dog indoors"]
    assert said(captions, trigger="wibble", prior=True)[0].startswith("all 3 captions say 'dog'")
    assert said(captions, trigger="wibble", prior=True, preserved=["a photo of a dog"]) == []


def test_alike_counts_pairs_and_names_three():
    (line,) = said([f"a {word} in ink style" for word in ("cat", "star", "face", "house", "tree")], [255] * 5)
    assert line.startswith("10 pairs of pictures look nearly the same (0.png, 1.png; 0.png, 2.png; 0.png, 3.png and 7")
