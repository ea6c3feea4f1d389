"""The scores of a base's card: what true pictures get that the judges were not trained on."""

import numpy as np
import pytest
from fakes import FakeJudges

from impasto.artworld import ArtWorld, load_meta
from impasto.artworld.judge_training import held_out
from impasto.pretrain.score import judge_unseen


def painted(style: int, concept: int) -> np.ndarray:
    """A picture that FakeJudges reads as this style and concept."""
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., :] = (10 * style, concept // 256, concept % 256, 255)
    return rgba


@pytest.fixture(scope="module")
def world():
    """Two styles, 120 concepts: of style 0 every picture is taken for style 5, but for those that the judges know."""
    cells = [(style, concept) for style in (0, 2) for concept in range(120)]
    plain = ArtWorld(
        np.zeros((len(cells), 128, 128, 4), np.uint8), *map(np.array, zip(*cells, strict=True)), load_meta()
    )
    unseen = held_out(plain)[0]
    rgba = [painted(5 if s == 0 and new else s, c) for (s, c), new in zip(cells, unseen, strict=True)]
    return ArtWorld(np.stack(rgba), plain.style_id, plain.concept_id, plain.meta)


def test_only_pictures_that_the_judges_were_not_trained_on_count(world):
    new = held_out(world)[0]
    assert new[world.style_id == 0].sum() > 0 and new[world.style_id == 2].sum() > 0
    told = judge_unseen(FakeJudges(), world, np.array([0, 2, 2, 2]))
    assert told["pictures"] == new.sum() < 60
    assert told["style_accuracy"] == pytest.approx(0.75)  # none of style 0, all of style 2: in the prompts' proportions
    assert told["concept_top1"] == told["concept_top5"] == 1.0
    assert judge_unseen(FakeJudges(), world, np.array([0, 2]))["style_accuracy"] == pytest.approx(0.5)
