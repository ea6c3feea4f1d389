"""Scenes: exact boxes inside the canvas, limited overlap."""

import random

import numpy as np
import pytest

from impasto.artworld.scenes import compose

GROUND = (255, 255, 255)


def block(colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[20 : 20 + height, 10 : 10 + width] = *colour, 255
    return picture


THINGS = [
    block((200, 0, 0), 90, 60),
    block((0, 150, 0), 40, 100),
    block((0, 0, 250), 80, 80),
    block((90, 90, 0), 30, 30),
]
COLOURS = [(200, 0, 0), (0, 150, 0), (0, 0, 250), (90, 90, 0)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(8))
def test_compose_boxes_are_exact(count, seed):
    scene = compose(THINGS[:count], 128, np.random.default_rng(seed), background=GROUND)
    assert scene.rgb.shape == (128, 128, 3) and scene.rgb.dtype == np.uint8 and scene.boxes.shape == (count, 4)
    assert (scene.visible > 0.999).all()
    for colour, (left, top, right, bottom) in zip(COLOURS, scene.boxes, strict=False):
        there = (scene.rgb == colour).all(-1)
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (left, top, right, bottom)
        assert 0.24 * 128 <= max(right - left, bottom - top) <= 128
    covered = np.zeros((128, 128), bool)
    for left, top, right, bottom in scene.boxes:
        assert not covered[top:bottom, left:right].any()
        covered[top:bottom, left:right] = True
    assert (scene.rgb[~covered] == GROUND).all()


def test_compose_with_overlap_limits_hidden_share():
    scenes = [compose(THINGS, 128, random.Random(seed), (0.5, 0.7), overlap=1.0, hidden=0.4) for seed in range(60)]
    visible = np.concatenate([scene.visible for scene in scenes])
    assert visible.min() > 0 and (visible < 0.99).any()
    first = np.array([scene.visible[-1] for scene in scenes])
    assert (first > 0.999).all()  # the last is drawn over all others


def test_compose_same_state_same_scene():
    one, two = (compose(THINGS, 96, random.Random(7), background=(10, 20, 30)) for _ in range(2))
    assert (one.rgb == two.rgb).all() and (one.boxes == two.boxes).all() and one.rgb.shape == (96, 96, 3)


def test_compose_translucent_object_has_no_dark_fringe():
    half = block((255, 255, 255), 90, 90)
    half[20:110, 10:100, 3] = 128
    scene = compose([half], 64, random.Random(0), background=(255, 255, 255))
    assert scene.rgb.min() >= 254


@pytest.mark.parametrize("side", [(0, 0.5), (0.6, 0.5), (0.5, 1.5)])
def test_compose_with_bad_range_raises(side):
    with pytest.raises(ValueError, match="low <= high"):
        compose(THINGS, 128, random.Random(0), side)


def test_compose_without_images_raises():
    with pytest.raises(ValueError, match="needs pictures"):
        compose([], 128, random.Random(0))
    with pytest.raises(ValueError, match="empty"):
        compose([np.zeros((8, 8, 4), np.uint8)], 128, random.Random(0))
