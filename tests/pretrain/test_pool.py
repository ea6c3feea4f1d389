"""The pool of training images: no held-out style, determinism, captions."""

import random

import numpy as np
import pytest

from impasto.artworld import ArtWorld, load_meta, load_slice
from impasto.artworld.captions import BACKGROUNDS
from impasto.pretrain.pool import (
    KINDS,
    NO_STYLE_SHARE,
    TAIL_SHARE,
    TRUNCATED_SHARE,
    Entry,
    add_tail,
    build_pool,
    truncate_description,
    visible_ground,
)


@pytest.fixture(scope="module")
def world() -> ArtWorld:
    """The slice's images with their styles renamed to train styles, which are not packaged."""
    part = load_slice(styles=["fluent-emoji-3d", "streamline-emojis"])
    train = load_meta()["split"]["train_styles"]
    names = {style: train[i] for i, style in enumerate(np.unique(part.style_id))}
    return ArtWorld(part.rgba, np.array([names[s] for s in part.style_id]), part.concept_id, part.meta)


def test_build_pool_is_function_of_seed(world):
    a, b, c = (build_pool(ground=0.05, procedurals=0.1, scenes=0.1, seed=s, world=world) for s in (3, 3, 4))
    assert np.array_equal(a.rgb, b.rgb) and a.entries == b.entries
    assert not np.array_equal(a.rgb, c.rgb)
    assert all(len(a.rows[kind]) for kind in KINDS)
    n = len(world)
    assert len(a.rows["plain"]) == n and len(a.rows["scene"]) == round(0.1 * n)


def test_entry_captions_name_content(world):
    pool = build_pool(ground=0.1, procedurals=0.1, scenes=0.1, seed=0, world=world)
    labels = [c["label"] for c in load_meta()["concepts"]]
    rng = random.Random(0)
    for i in pool.rows["scene"]:
        entry = pool.entries[i]
        assert all(labels[c] in entry.caption(rng) for c in entry.concepts) and 2 <= len(entry.concepts) <= 4
    for i in pool.rows["ground"]:
        assert pool.entries[i].background in BACKGROUNDS
        corner = pool.rgb[i][0, 0].astype(int)
        assert np.abs(corner - np.array(BACKGROUNDS[pool.entries[i].background])).max() <= 1


def test_entry_captions_have_expected_shares():
    rng, words = random.Random(0), "scratched on dark slate"
    texts = [Entry("procedural", (5,), words).caption(rng) for _ in range(4000)]
    some = [any(word in text for word in words.split()) for text in texts]
    assert 1 - np.mean(some) == pytest.approx(NO_STYLE_SHARE, abs=0.015)
    assert 1 - np.mean([words in text for text in texts]) == pytest.approx(NO_STYLE_SHARE + TRUNCATED_SHARE, abs=0.02)
    assert load_meta()["concepts"][5]["label"] in texts
    whole = [text for text in texts if words in text]
    assert np.mean(["slate and a " in text or "slate with a " in text for text in whole]) == pytest.approx(
        2 / 8 * TAIL_SHARE / (1 - NO_STYLE_SHARE - TRUNCATED_SHARE), abs=0.015
    )
    scenes = [Entry("scene", (5, 6), words).caption(rng) for _ in range(400)]
    assert 0.15 < np.mean([words not in text for text in scenes]) < 0.32
    for _ in range(200):
        part = truncate_description(words, rng)
        assert part in words and 2 <= len(part.split()) < 4
    assert truncate_description("two words", rng) == "two words"
    assert any(" and a " in add_tail(words, rng) for _ in range(50))
    assert add_tail("chalk lines, on navy", rng).startswith("chalk lines") and add_tail("chalk, on navy", rng).endswith(
        ", on navy"
    )
    assert add_tail("one " * 15, rng) == "one " * 15


def test_pool_draw_keeps_shares(world):
    pool = build_pool(ground=0.1, procedurals=0.1, scenes=0.0, seed=0, world=world)
    rows = pool.draw(4000, {"plain": 0.5, "ground": 0.25, "procedural": 0.25, "scene": 0.9}, np.random.default_rng(0))
    share = np.isin(rows, pool.rows["plain"]).mean()
    assert abs(share - 0.5) < 0.03  # without scenes, the rest is normalised


def test_visible_ground_contrasts_with_object():
    black = np.zeros((128, 128, 4), np.uint8)
    black[32:96, 32:96, 3] = 255
    for seed in range(20):
        colour = BACKGROUNDS[visible_ground([black], random.Random(seed))]
        assert max(colour) > 60
