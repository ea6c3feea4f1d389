"""Draws: functions of (seed, step, item), one shape per step, and what belongs together stays together."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from impasto.config import make_config
from impasto.data.draws import Draws
from impasto.data.prepare import Pair, Prepared
from impasto.noise.laws import build_law
from impasto.noise.random import generators

LAW = build_law("style-friendly", mean=-6.0, std=2.0, shift=None)


def marked(shapes, repeats=None, views=1, masks=None, empty=False, sizes=None):
    """Pictures of the given (h, w); all that belongs to picture i holds the number i, its view k the channel k."""
    x, pairs = [], []
    for i, (h, w) in enumerate(shapes):
        pairs.append(Pair(tuple(range(len(x), len(x) + views)), i, (repeats or [1] * len(shapes))[i]))
        x += [torch.stack([torch.full((h, w), float(i)), torch.full((h, w), float(k))]) for k in range(views)]
    text = [torch.full((2,), float(i)) for i in range(len(shapes))] + [torch.full((2,), -1.0)] * empty
    count = len(shapes) if empty else None
    return Prepared(x, {1: {"text": text}}, {1: 1.0}, tuple(pairs), masks or (), sizes, count)


def draws_of(prepared, **changes):
    return Draws(make_config(**{"batch": 4} | changes), LAW, prepared)


def test_a_single_picture_is_drawn_as_it_always_was():
    """The order of an item's draws, by hand: picture, level, noise. What was trained before is trained again."""
    config = make_config(batch=3, seed=5)
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    batch, lam, own = Draws(config, LAW, Prepared(x, {1: {"text": torch.arange(2.0)}}, {1: 1.0}))(7, 2)
    theirs = generators(5, 7, range(6, 9))
    index = torch.cat([torch.randint(2, (1,), generator=g) for g in theirs])
    assert torch.equal(batch.x, x[index]) and torch.equal(batch.cond["text"], index.float()) and batch.mask is None
    assert torch.equal(lam, LAW(theirs))
    assert torch.equal(batch.eps, torch.stack([torch.randn(4, 2, 2, generator=g) for g in theirs]))
    assert [torch.rand(1, generator=g) for g in own] == [torch.rand(1, generator=g) for g in theirs]


def test_a_step_holds_one_shape_and_pairs_stay_together():
    draws = draws_of(marked([(2, 2), (2, 4), (2, 2), (4, 2)], views=2, sizes=torch.arange(48.0).view(8, 6)))
    seen = Counter()
    for step in range(300):
        shapes = set()
        for micro in (0, 1):
            batch, _, _ = draws(step, micro)
            shapes.add(batch.x.shape[2:])
            picture, view = batch.x[:, 0, 0, 0], batch.x[:, 1, 0, 0]
            assert torch.equal(batch.cond["text"][:, 0], picture) and batch.eps.shape == batch.x.shape
            assert torch.equal(batch.cond["size_ids"][:, 0], 6 * (2 * picture + view))
            seen.update(zip(picture.tolist(), view.tolist(), strict=True))
        assert len(shapes) == 1
    assert set(seen) == {(float(i), float(k)) for i in range(4) for k in range(2)}
    assert all(count / 2400 == pytest.approx(1 / 8, abs=0.04) for count in seen.values())


def test_draws_do_not_depend_on_the_split_of_a_batch():
    """With buckets, crops, repeats and dropout: 3 x 2 or 6 x 1 are the same draws, and so again later."""
    prepared = marked([(2, 2), (2, 4), (2, 2)], [1, 2, 3], views=3, empty=True)
    one = draws_of(prepared, batch=3, caption_dropout=0.5)
    two = draws_of(prepared, batch=6, caption_dropout=0.5)
    for step in (1, 2, 3, 9):
        halves, whole = [one(step, micro) for micro in (0, 1)], two(step, 0)
        assert torch.equal(torch.cat([half[0].x for half in halves]), whole[0].x)
        assert torch.equal(torch.cat([half[0].eps for half in halves]), whole[0].eps)
        assert torch.equal(torch.cat([half[0].cond["text"] for half in halves]), whole[0].cond["text"])
        assert torch.equal(torch.cat([half[1] for half in halves]), whole[1])
        assert torch.equal(one(step, 0)[0].x, halves[0][0].x)
    assert not torch.equal(draws_of(prepared, batch=6, seed=1)(1, 0)[0].eps, two(1, 0)[0].eps)


def test_repeats_are_shares():
    draws = draws_of(marked([(2, 2), (2, 4), (2, 2)], [10, 20, 30]), batch=1)
    seen = Counter(draws(step, 0)[0].x[0, 0, 0, 0].item() for step in range(1500))
    assert [seen[i] / 1500 for i in (0, 1, 2)] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.04)
    assert sum(map(len, draws.buckets)) == 6  # by their greatest common divisor


def test_dropout_changes_captions_and_nothing_else():
    prepared = marked([(2, 2)] * 3, empty=True)
    plain, dropped = draws_of(prepared, batch=50), draws_of(prepared, batch=50, caption_dropout=0.3)
    empty = 0
    for step in range(40):
        (a, lam_a, _), (b, lam_b, _) = plain(step, 0), dropped(step, 0)
        assert torch.equal(a.x, b.x) and torch.equal(a.eps, b.eps) and torch.equal(lam_a, lam_b)
        gone = b.cond["text"][:, 0] == -1
        assert torch.equal(a.cond["text"][~gone], b.cond["text"][~gone])
        empty += gone.sum().item()
    assert empty / 2000 == pytest.approx(0.3, abs=0.04)
    assert (draws_of(prepared, caption_dropout=1.0)(1, 0)[0].cond["text"] == -1).all()


def test_masks_follow_their_pictures():
    masks = (torch.full((1, 2, 2), 0.5), None)
    draws = draws_of(marked([(2, 2)] * 2, masks=masks), batch=8)
    batch, _, _ = draws(1, 0)
    expected = torch.where(batch.x[:, 0, 0, 0] == 0, 0.5, 1.0)
    assert batch.mask.shape == (8, 1, 2, 2) and set(expected.tolist()) == {0.5, 1.0}
    assert torch.equal(batch.mask[:, 0, 0, 0], expected)
    assert draws_of(replace(marked([(2, 2)] * 2), masks=(None, None)))(1, 0)[0].mask is None


def test_the_batch_goes_to_the_device():
    prepared = marked([(2, 2)] * 2, masks=(torch.ones(1, 2, 2), None), sizes=torch.ones(2, 6))
    batch, lam, _ = Draws(make_config(batch=2), LAW, prepared, "meta")(1, 0)
    assert {t.device.type for t in (batch.x, batch.eps, batch.mask, lam, *batch.cond.values())} == {"meta"}
    small = prepared.to("meta")
    assert {t.device.type for t in (*small.x, *small.conds[1]["text"], small.masks[0], small.sizes)} == {"meta"}


def test_a_large_set_stays_on_the_host(monkeypatch):
    monkeypatch.setattr("impasto.data.prepare.ON_DEVICE", 10)
    prepared = marked([(2, 2)] * 2)
    assert prepared.to("meta") is prepared
