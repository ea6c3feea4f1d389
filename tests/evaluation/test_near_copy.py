"""Near-copies: changed copies of a reference are found, other images are not."""

import numpy as np
import pytest
from PIL import Image

from impasto.artworld import load_slice
from impasto.evaluation.near_copy import correlation, near_copies


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(rgb) for rgb in load_slice(styles=["streamline-emojis"]).rgb()[:12]]


def test_changed_copies_are_found_and_other_images_are_not(images):
    reference = images[0]
    side = reference.width
    cropped = reference.crop((4, 6, side - 4, side - 2)).resize((side * 2, side * 2))
    mirrored = reference.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert near_copies([reference, cropped, mirrored], [reference]) == [True] * 3
    assert near_copies(images[1:], [reference]) == [False] * 11
    assert near_copies([images[3]], [reference, images[3].resize((90, 70))]) == [True], "any of several references"


def test_correlation_of_one_colour_is_0():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert correlation([Image.new("RGB", (32, 32), "red")], [noise]).item() == pytest.approx(0, abs=1e-6)
