"""The scores of a base's card."""

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakeJudges

from impasto.artworld import ArtWorld, load_meta
from impasto.artworld.captions import prompt
from impasto.judges.training import held_out
from impasto.pretrain.score import SCENES, judge_unseen, score_base, score_scenes


def painted(style: int, concept: int) -> np.ndarray:
    """An image that FakeJudges classifies as this style and concept."""
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., :] = (10 * style, concept // 256, concept % 256, 255)
    return rgba


@pytest.fixture(scope="module")
def world():
    """Two styles, 120 concepts; held-out images of style 0 are classified as style 5."""
    cells = [(style, concept) for style in (0, 2) for concept in range(120)]
    plain = ArtWorld(
        np.zeros((len(cells), 128, 128, 4), np.uint8), *map(np.array, zip(*cells, strict=True)), load_meta()
    )
    unseen = held_out(plain)[0]
    rgba = [painted(5 if s == 0 and new else s, c) for (s, c), new in zip(cells, unseen, strict=True)]
    return ArtWorld(np.stack(rgba), plain.style_id, plain.concept_id, plain.meta)


def test_judge_unseen_uses_held_out_cells(world):
    new = held_out(world)[0]
    assert new[world.style_id == 0].sum() > 0 and new[world.style_id == 2].sum() > 0
    scores = judge_unseen(FakeJudges(), world, np.array([0, 2, 2, 2]))
    assert scores["pictures"] == new.sum() < 60
    assert scores["style_accuracy"] == pytest.approx(0.75)  # 0 for style 0, 1 for style 2, in the prompts' proportions
    assert scores["concept_top1"] == scores["concept_top5"] == 1.0
    assert judge_unseen(FakeJudges(), world, np.array([0, 2]))["style_accuracy"] == pytest.approx(0.5)


class Painter:
    """A fake pipeline: images that FakeJudges classifies by `content`, {prompt: (style, concept)}."""

    def __init__(self, content: dict[str, tuple[int, int]]) -> None:
        self.content, self.asked = content, []

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, prompts, **settings):
        self.asked += prompts
        images = [painted(*self.content.get(p, (0, 0)))[..., :3] / 255.0 for p in prompts]
        return SimpleNamespace(images=np.stack(images))


def test_score_base_reports_core_and_scenes(monkeypatch):
    core = load_meta()["split"]["core_everywhere"]
    rare = next(c for c in range(1194) if c not in core)
    things = [*core[:3], rare]
    rgba = np.stack([painted(2, c) for c in things])
    rgba[:, 40:, :, 3] = 255
    world = ArtWorld(rgba, np.full(4, 2), np.array(things), load_meta())
    labels = [concept["label"] for concept in load_meta()["concepts"]]
    words = load_meta()["styles"][2]["descriptions"]
    content = {prompt(labels[c], text): (2, c) for c in core[:3] for text in words}  # not the rare concept
    content |= {prompt(labels[rare], text): (2, core[5]) for text in words}
    pipe, judges = Painter(content), FakeJudges()
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
    assert "core" not in score_base(Painter(content), few, judges, n=8)

    class First(Painter):
        """Generates of every scene only the concept named first."""

        def __call__(self, prompts, **settings):
            first = [min((p.find(labels[c]), c) for c in things if labels[c] in p)[1] for p in prompts]
            return SimpleNamespace(images=np.stack([painted(2, c)[..., :3] / 255.0 for c in first]))

    found = score_scenes(First({}), world, FakeJudges(), n=20)
    assert found["2"]["generated"] == pytest.approx(1 / 2) and found["3"]["generated"] == pytest.approx(1 / 3)
