"""The judges: interface, accuracy of the packaged weights, held-out cells, training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.artworld import ArtWorld, load_meta, load_slice
from impasto.errors import UserError
from impasto.judges import scores, training
from impasto.judges.model import FOLDER, Judges, Net, NetConfig


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


@pytest.fixture(scope="module")
def slice_() -> ArtWorld:
    return load_slice()


@pytest.fixture(scope="module")
def pictures(slice_) -> torch.Tensor:
    return torch.from_numpy(slice_.rgb()).permute(0, 3, 1, 2).float() / 255


# The interface


def test_judges_outputs_have_expected_shapes(judges):
    x = torch.rand(3, 3, 128, 128)
    assert len(judges.style_names) == len(judges.kinds) == 19
    assert len(judges.labels) == 1194
    assert judges.style(x).shape == (3, 19)
    assert judges.kind(x).shape == (3, len(judges.kind_names))
    assert judges.concept(x).shape == (3, 1194)
    features = judges.style_features(x)
    assert features.shape[0] == 3
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert 0 < judges.concept_threshold < 1


def test_judges_names_match_art_world(judges):
    meta = load_meta()
    assert judges.style_names == meta["style_names"]
    assert judges.labels == [concept["label"] for concept in meta["concepts"]]
    assert judges.kinds == [style["kind"] for style in meta["styles"]]


def test_judges_probabilities_are_normalised(judges):
    x = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(judges.style(x).sum(1), torch.ones(2))
    torch.testing.assert_close(judges.kind(x).sum(1), torch.ones(2))
    q = judges.concept(x)
    assert q.min() >= 0
    assert q.max() <= 1


def test_judges_of_no_images_return_no_rows(judges):
    x = torch.empty(0, 3, 128, 128)
    assert judges.style(x).shape == (0, 19)
    assert judges.concept([]).shape == (0, 1194)
    assert judges.style_features([]).shape[0] == 0


@pytest.mark.parametrize("what", ["style", "kind", "concept", "style_features"])
def test_judges_are_deterministic_and_independent_of_batch(judges, pictures, what):
    score = getattr(judges, what)
    x = pictures[:70]  # more than one batch
    together = score(x)
    assert torch.equal(together, score(x))
    alone = torch.cat([score(x[i : i + 1]) for i in (0, 37, 69)])
    torch.testing.assert_close(alone, together[[0, 37, 69]], atol=1e-5, rtol=1e-4)


def test_judges_of_pil_images_and_tensors_agree(judges, slice_, pictures):
    flat = [Image.fromarray(rgb) for rgb in slice_.rgb()[:3]]
    torch.testing.assert_close(judges.concept(flat), judges.concept(pictures[:3]))
    transparent = [Image.fromarray(rgba) for rgba in slice_.rgba[:3]]
    torch.testing.assert_close(judges.style(transparent), judges.style(pictures[:3]), atol=0.02, rtol=0)


def test_judges_resize_images(judges, pictures):
    big = pictures[:4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(judges.style(big), judges.style(pictures[:4]), atol=1e-5, rtol=1e-4)
    assert judges.concept([Image.new("L", (50, 70))]).shape == (1, 1194)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8)])
def test_judges_of_invalid_tensor_raise(judges, wrong):
    with pytest.raises(ValueError, match="float"):
        judges.style(wrong)


def test_load_with_missing_or_changed_weights_raises(tmp_path):
    with pytest.raises(UserError, match=r"card\.json"):
        Judges.load(tmp_path)
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "style.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"style\.safetensors"):
        Judges.load(tmp_path)


# The packaged weights


def test_packaged_weights_stay_below_size_limits():
    assert (FOLDER / "style.safetensors").stat().st_size <= 1.5e6
    assert (FOLDER / "concept.safetensors").stat().st_size <= 6.5e6


def test_packaged_judges_reach_accuracy_on_slice(judges, slice_, pictures):
    """Held-out styles x (evaluation + reference concepts); of the primary styles, most images were not trained on."""
    columns = scores.single_scores(judges, pictures, slice_.style_id, slice_.concept_id)
    primary = np.isin(slice_.style_id, load_meta()["split"]["primary_styles"])
    unseen = training.held_out(slice_)
    for mask, style, concept in ((primary, 0.95, 0.75), (unseen[0] | unseen[1], 0.9, 0.7)):
        assert columns["style_accuracy"][mask].mean() >= style
        assert columns["concept_top5"][mask].mean() >= concept


def test_concept_of_blank_image_is_below_half(judges):
    assert judges.concept(torch.ones(1, 3, 128, 128)).max() < 0.5


# Held-out cells


def test_held_out_cells_match_stored_list(slice_):
    """The stored list, the hash and the masks agree; 8 % at random; all (primary style, evaluation concept) cells."""
    stored = json.loads((FOLDER / "held_out.json").read_text())
    meta = load_meta()
    drawn = [
        (s, meta["concepts"][c]["hex"]) for s, row in zip(meta["style_names"], meta["drawn"], strict=True) for c in row
    ]
    at_random = {(s, c) for s, c in drawn if training.held_out_at_random(s, c)}
    assert at_random == {(s, c) for s, cells in stored["random"].items() for c in cells}
    assert 0.07 < len(at_random) / len(drawn) < 0.09
    random, primary = training.held_out(slice_)
    names = [meta["style_names"][s] for s in slice_.style_id]
    hexes = [meta["concepts"][c]["hex"] for c in slice_.concept_id]
    assert [c in stored["random"][s] for s, c in zip(names, hexes, strict=True)] == random.tolist()
    assert [c in stored["primary"][s] for s, c in zip(names, hexes, strict=True)] == primary.tolist()
    split = meta["split"]
    expected = np.isin(slice_.style_id, split["primary_styles"]) & np.isin(
        slice_.concept_id, split["evaluation_concepts"]
    )
    assert (primary == expected).all()
    assert primary.sum() == 149


@pytest.mark.parametrize("which", ["style", "concept"])
def test_sampler_excludes_held_out_cells(slice_, which):
    """Neither as a single image nor inside a scene."""
    random, primary = training.held_out(slice_)
    sampler = training.Sampler(slice_, training.PLANS[which], which)
    rng = np.random.default_rng(0)
    sampled = [i for k in range(3000) for i in sampler.members(rng, scene=bool(k % 2) and which == "concept")]
    assert not (random | primary)[sampled].any()
    assert len(set(sampled)) > 0.9 * len(sampler.index)


def test_style_sampler_is_balanced_except_hardest(slice_):
    sampler = training.Sampler(slice_, training.PLANS["style"], "style")
    rng = np.random.default_rng(0)
    counts = np.bincount([slice_.style_id[sampler.draw(rng)] for _ in range(8000)], minlength=19)
    hardest = load_meta()["style_names"].index(training.HARDEST["style"])
    assert 1850 < counts[hardest] < 2150
    others = np.delete(counts, hardest)
    assert (others > 0).sum() == 6
    assert others[others > 0].min() > 850


# Training


def test_batch_is_function_of_step(slice_):
    sampler = training.Sampler(slice_, training.PLANS["concept"], "concept")
    (x, y), (x2, y2), (other, _) = sampler.batch(3, 64, 0.5), sampler.batch(3, 64, 0.5), sampler.batch(4, 64, 0.5)
    assert x.shape == (64, 3, 64, 64)
    assert y.shape == (64, 1194)
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    assert not torch.equal(x, other)
    assert y.sum(1).min() >= 1
    assert y.sum(1).max() <= training.MAX_OBJECTS
    single = (y.sum(1) == 1).float().mean()
    assert 0.45 < single < 0.85  # half are single images, an eighth scenes of one object


def test_softness_keeps_range(slice_):
    sampler = training.Sampler(slice_, training.PLANS["concept"], "concept")
    x, _ = sampler.batch(0, 64, 0.5)
    soft = training.Softness(sampler)(x, torch.Generator().manual_seed(0))
    assert soft.shape == x.shape
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert 0 < (soft - x.float() / 255).abs().mean() < 0.1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_scatter_stays_on_canvas(count):
    rng = np.random.default_rng(count)
    for _ in range(200):
        sides, corners = training.scatter(rng, count, 128)
        assert all(32 <= side <= 128 for side in sides)
        assert sides == sorted(sides, reverse=True)
        assert all(v >= -1 and v + side <= 129 for side, corner in zip(sides, corners, strict=True) for v in corner)


def test_compose_is_alpha_over_ground(slice_):
    art = slice_.rgba[:1]
    plain = np.asarray(training.compose(art, [128], [(0, 0)], 128, (255, 255, 255)), int)
    assert np.abs(plain - slice_.rgb()[0]).max() <= 1
    small = np.asarray(training.compose(art, [32], [(90, 10)], 128, (10, 200, 30)))
    assert (small[:, :80] == (10, 200, 30)).all()


def test_rank_loss_of_single_image_is_cross_entropy():
    torch.manual_seed(0)
    z, target = torch.randn(5, 7), torch.randint(7, (5,))
    losses = training.concept_loss(z, torch.nn.functional.one_hot(target, 7).float())
    torch.testing.assert_close(losses["rank"], torch.nn.functional.cross_entropy(z, target))
    torch.testing.assert_close(losses["loss"], losses["rank"] + losses["sigmoid"])


def test_rank_loss_ignores_other_present_concepts():
    z = torch.tensor([[3.0, 9.0, 0.0]])
    losses = training.concept_loss(z, torch.tensor([[1.0, 1.0, 0.0]]))
    expected = -(torch.log_softmax(z[0, [0, 2]], 0)[0] + torch.log_softmax(z[0, [1, 2]], 0)[0]) / 2
    torch.testing.assert_close(losses["rank"], expected)


def test_run_resumed_repeats_next_step(slice_, tmp_path, monkeypatch):
    """Weights, EMA, optimisers and counters are restored; the next step is identical."""
    tiny = NetConfig(classes=19, size=32, stem=8, widths=(8, 16), depths=(1, 1), pool="statistics")
    monkeypatch.setitem(
        training.PLANS,
        "style",
        training.Plan(tiny, ((0.0, 32, 0.0),), (0, 0), (0.9, 1), 0.05, 0, 0.2, (20, 80), batch=8),
    )
    sampler = training.Sampler(slice_, training.PLANS["style"], "style")
    soften = training.Softness(sampler)

    def step(run: training.Run) -> dict[str, float]:
        x, y = sampler.batch(run.step, 32, 0)
        return run.update(soften(x, torch.Generator().manual_seed(run.step)), y, 0.3)

    run = training.Run("style", tmp_path)
    for _ in range(3):
        step(run)
    run.save()
    resumed = training.Run("style", tmp_path)
    resumed.resume()
    assert resumed.step == 3
    assert resumed.seen == 24
    assert step(run) == step(resumed)
    for name, value in run.average.items():
        torch.testing.assert_close(value, resumed.average[name])


def test_classify_pools_by_log_mean_exp():
    """With log-mean-exp pooling one strong position of 64 dominates; with a plain mean it would not."""
    net = Net(NetConfig(classes=2, size=32, stem=0, widths=(4,), depths=(1,), pool="places")).eval()
    with torch.no_grad():
        net.context.weight.zero_()
        net.context.bias.zero_()
        net.head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
        net.head.bias.zero_()
        h = torch.zeros(1, 4, 8, 8)
        h[0, 0, 3, 5] = 20
        logits = net.classify(h)
    torch.testing.assert_close(logits[0], torch.tensor([20 - np.log(64), 0.0], dtype=torch.float32), atol=1e-3, rtol=0)


# Measurement


def test_scene_scores_match_hand_count():
    objects = [[(0, 0, 0.3), (1, 0, 0.7)], [(2, 0, 1.0)]]
    q = np.array([[0.9, 0.1, 0.6, 0.0], [0.0, 0.0, 0.8, 0.0]])
    result = scores.scene_scores(q, objects, 0.5)
    assert result["recall"] == pytest.approx(2 / 3, abs=1e-4)
    assert result["false_positives"] == pytest.approx(1 / 5)
    assert result["recall_side_0.25_0.40"] == 1
    assert result["recall_side_0.60_1.00"] == 0.5
    assert result["recall_2_objects"] == 0.5
    assert result["recall_4_objects"] is None


def test_true_scenes_use_given_images_of_one_style(slice_):
    rows = np.arange(0, len(slice_), 3)
    cells = {(int(slice_.concept_id[i]), int(slice_.style_id[i])) for i in rows}
    images, objects = scores.true_scenes(slice_, rows, 40, 0)
    assert images.shape == (40, 3, 128, 128)
    assert {(c, s) for inside in objects for c, s, _ in inside} <= cells
    assert all(len({s for _, s, _ in inside}) == 1 for inside in objects)
