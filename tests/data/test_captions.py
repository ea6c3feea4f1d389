"""Captions: one for each picture, or one for all."""

import warnings
from pathlib import Path

import pytest

from impasto.data.captions import check, of_run, pair
from impasto.errors import UserError


def test_what_a_run_was_trained_on():
    """As it kept it, else as its recipe says it."""
    recipe = {"caption": ["a cat,  [trigger]", "a dog"], "caption_prefix": "photo of", "trigger": "wibble style"}
    filled = ["photo of a cat, wibble style", "photo of a dog"]
    assert of_run(recipe, {"torch": "2"}) == filled
    assert of_run(recipe, {"captions": filled[:1]}) == filled[:1]
    assert of_run({"caption": "a cat, [trigger]"}, {}) == ["a cat, [trigger]"]
    assert of_run({"trigger": "wibble"}, {}) == []


def test_pairs_keep_their_order():
    images = [Path("a.png"), Path("b.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pair(images, ["x in ink style", "y, pixel  art"]) == [
            (images[0], "x in ink style"),
            (images[1], "y, pixel art"),
        ]
        assert [caption for _, caption in pair(images, ["in ink style"])] == ["in ink style"] * 2


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        ([], ["a style"], "no reference picture"),
        (["a.png"], [], "no caption"),
        (["a.png", "b.png", "c.png"], ["a style", "b style"], "3 pictures but 2 captions"),
        (["a.png"], ["  "], "caption of 'a.png' is empty"),
    ],
)
def test_what_does_not_match(images, captions, message):
    with pytest.raises(UserError, match=message):
        pair(images, captions)


def test_a_caption_without_a_style_is_said():
    with pytest.warns(UserWarning, match="names no style"):
        assert check("a rocket", "a.png") == "a rocket"
