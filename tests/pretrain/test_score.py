"""The scores of a base's card: what true pictures get that the judges were not trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakeJudges

from impasto.artworld import ArtWorld, load_meta
from impasto.artworld.captions import prompt
from impasto.judges.training import held_out
from impasto.pretrain.score import SCENES, judge_unseen, score_base, score_scenes


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


class Painter:
    """A pipeline that draws what FakeJudges reads as the style, and as the first thing, of a prompt it was told of."""

    def __init__(self, told: dict[str, tuple[int, int]]) -> None:
        self.told, self.asked = told, []

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, prompts, **settings):
        self.asked += prompts
        drawn = [painted(*self.told.get(p, (0, 0)))[..., :3] / 255.0 for p in prompts]
        return SimpleNamespace(images=np.stack(drawn))


def test_scores_of_the_core_and_of_scenes_stand_beside_the_whole(monkeypatch):
    core = load_meta()["split"]["core_everywhere"]
    rare = next(c for c in range(1194) if c not in core)
    things = [*core[:3], rare]
    rgba = np.stack([painted(2, c) for c in things])
    rgba[:, 40:, :, 3] = 255
    world = ArtWorld(rgba, np.full(4, 2), np.array(things), load_meta())
    labels = [concept["label"] for concept in load_meta()["concepts"]]
    words = load_meta()["styles"][2]["descriptions"]
    told = {prompt(labels[c], text): (2, c) for c in core[:3] for text in words}  # the rare thing it cannot draw
    told |= {prompt(labels[rare], text): (2, core[5]) for text in words}
    pipe, judges = Painter(told), FakeJudges()
    judges.card = {which: {"sha256": "0"} for which in ("style", "concept")}
    scores = score_base(pipe, world, judges, n=60)
    share = scores["core"]["prompts"] / 60
    assert 0.5 < share < 1 and scores["core"]["generated"]["concept_top1"] == 1
    assert scores["generated"]["concept_top1"] == pytest.approx(share) and scores["true"]["concept_top1"] == 1
    assert scores["scenes"]["2"]["prompts"] == SCENES and scores["scenes"]["threshold"] == 0.5
    asked = pipe.asked[60:]
    assert len(asked) == 2 * SCENES and all(" and " in text for text in asked)
    assert all(any(text.count(labels[c]) for c in things) for text in asked)

    few = ArtWorld(rgba[:3], world.style_id[:3], world.concept_id[:3], world.meta)
    assert "core" not in score_base(Painter(told), few, judges, n=8)

    class First(Painter):
        """Of every scene it draws the one thing whose name comes first."""

        def __call__(self, prompts, **settings):
            first = [min((p.find(labels[c]), c) for c in things if labels[c] in p)[1] for p in prompts]
            return SimpleNamespace(images=np.stack([painted(2, c)[..., :3] / 255.0 for c in first]))

    found = score_scenes(First({}), world, FakeJudges(), n=20)
    assert found["2"]["generated"] == pytest.approx(1 / 2) and found["3"]["generated"] == pytest.approx(1 / 3)
