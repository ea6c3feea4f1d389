"""Does the base know a style? Its images of the caption, between unrelated images and the reference."""

import pytest
from PIL import Image

from impasto.artworld import load_slice
from impasto.evaluation.validity import crops, unrelated_images
from impasto.judges.model import Judges
from impasto.training.base_previews import KNOWN, describe_base, nearness


@pytest.fixture(scope="module")
def reference():
    return Image.fromarray(load_slice().rgb()[5])


def test_nearness_is_one_for_crops_and_zero_for_unrelated_images(reference):
    judges = Judges.load()
    assert nearness(reference, crops(reference), judges) == pytest.approx(1, abs=1e-4)
    assert nearness(reference, unrelated_images(), judges) == pytest.approx(0, abs=1e-4)


def test_a_base_that_draws_the_reference_is_named_and_others_are_not(reference):
    assert "seems to know this style" in (describe_base("mini-sd15", reference, crops(reference)) or "")
    assert describe_base("mini-sd15", reference, unrelated_images()[-4:]) is None
    assert 0 < KNOWN < 1


def test_bases_that_the_judge_was_not_made_for_are_not_judged(reference, tmp_path):
    assert describe_base("black-forest-labs/FLUX.1-dev", reference, [reference]) is None
