"""Captions: determinism, variety, length, articles."""

import random

import numpy as np
import pytest

from impasto.artworld import concept_index, load_meta
from impasto.artworld.captions import (
    BACKGROUNDS,
    LONGEST,
    caption,
    join_labels,
    pieces,
    prompt,
    scene_caption,
    style_description,
    with_article,
)

META = load_meta()
ROCKET = concept_index("rocket")


@pytest.mark.parametrize("source", [random.Random, np.random.default_rng])
def test_caption_same_state_same_text(source):
    texts = [[caption(ROCKET, 2, rng, "navy", plain_form=0.3) for _ in range(50)] for rng in (source(5), source(5))]
    assert texts[0] == texts[1] and len(set(texts[0])) > 8
    assert all("rocket" in text and text.endswith("navy background") for text in texts[0])


def test_caption_shares_of_forms():
    rng = random.Random(0)
    texts = [caption(concept_index("bullseye"), 3, rng) for _ in range(2000)]
    known = {prompt("bullseye", text) for text in META["styles"][3]["descriptions"]}
    assert 0.40 < np.mean([text in known for text in texts]) < 0.70
    assert {"direct hit, ", "dart, "} <= {f"{text.split(',')[0]}, " for text in texts}


def test_caption_length_is_limited():
    rng = random.Random(1)
    longest = 0
    for concept in range(0, 1194, 3):
        for style in range(19):
            longest = max(longest, len(pieces(caption(concept, style, rng, "forest green", plain_form=0.2))))
    assert longest <= LONGEST


def test_caption_of_texts_keeps_them():
    rng = random.Random(2)
    assert caption("a thing", None, rng, plain_form=1) == "a thing"
    assert style_description("chalk on a board", rng) == "chalk on a board" and style_description(None, rng) is None
    assert caption("rocket", "chalk on a board", rng, plain_form=1) == "rocket, chalk on a board"


def test_scene_caption_joins_labels():
    rng = random.Random(3)
    text = scene_caption([ROCKET, concept_index("cactus"), concept_index("skis")], None, rng, "sky blue")
    assert text == "a rocket, a cactus and skis, on a sky blue background"
    assert join_labels(["rocket"]) == "a rocket" and join_labels(["ant", "cat"]) == "an ant and a cat"


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("rocket", "a rocket"),
        ("ant", "an ant"),
        ("hourglass done", "an hourglass done"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("automobile", "an automobile"),
        ("euro banknote", "a euro banknote"),
        ("x-ray", "an x-ray"),
        ("cactus", "a cactus"),
        ("wine glass", "a wine glass"),
        ("glasses", "glasses"),
        ("skis", "skis"),
        ("woman's hat", "a woman's hat"),
        ("money with wings", "money with wings"),
        ("glass of milk", "a glass of milk"),
        ("popcorn", "popcorn"),
        ("mount fuji", "mount fuji"),
        ("milky way", "the milky way"),
        ("sunrise over mountains", "a sunrise over mountains"),
        ("face holding back tears", "a face holding back tears"),
        ("people hugging", "people hugging"),
    ],
)
def test_with_article_by_noun(noun, text):
    assert with_article(noun) == text


def test_backgrounds_are_rgb():
    assert 16 <= len(BACKGROUNDS) <= 20
    assert all(len(rgb) == 3 and all(0 <= value <= 255 for value in rgb) for rgb in BACKGROUNDS.values())
