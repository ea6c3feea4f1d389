"""A batch in parts: the same draws, the same loss, the same gradient, fewer tokens at a time."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add
from impasto.bases.loader import load
from impasto.config import change, resolve
from impasto.data.batch import Batch
from impasto.data.draws import Draws, split_batch
from impasto.data.prepare import Prepared
from impasto.noise.random import generators
from impasto.objectives.dco import dco
from impasto.objectives.denoise import denoise
from impasto.objectives.prior import Prior
from impasto.training.train import train

N = 7


@pytest.fixture(scope="module")
def drawn(tiny_sd3):
    """(family, parameters, a batch of seven in double precision with masks, levels)."""
    family = load(str(tiny_sd3), device="cpu")
    parameters = add(family, LoRA(rank=4, alpha=None, targets=("attention",)), 0)
    family.denoiser.double()
    family.dtype = torch.float64
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters.values():
            p.copy_(0.2 * torch.randn(p.shape, generator=shared))
    x, eps = (torch.randn(N, 4, 4, 4, generator=shared) for _ in range(2))
    cond = {"text": torch.randn(N, 37, 48, generator=shared), "pooled": torch.randn(N, 24, generator=shared)}
    mask = torch.rand(N, 1, 4, 4, generator=shared)
    mask = mask / mask.mean((1, 2, 3), keepdim=True)
    prompts = tuple(f"caption {i}" for i in range(N))
    return family, parameters, Batch(x, eps, cond, mask, prompts), torch.linspace(-8, 2, N)


def prior(count, x, cond):
    return Prior(denoise, 2.0, count, x.flip(0), {name: rows.flip(0)[:, :33] for name, rows in cond.items()})


OBJECTIVES = {
    "denoise": lambda batch: denoise,
    "weighted": lambda batch: partial(denoise, weight=lambda lam: torch.exp(-lam / 2)),
    "dco": lambda batch: partial(dco, beta=100.0),
    "prior of one part": lambda batch: prior(2, batch.x, batch.cond),
    "prior of two parts": lambda batch: prior(4, batch.x, batch.cond),
    "prior of all": lambda batch: prior(N, batch.x, batch.cond),
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_have_the_loss_and_gradient_of_the_whole(drawn, name, masked):
    family, parameters, batch, lam = drawn
    batch = batch if masked else replace(batch, mask=None)
    objective = OBJECTIVES[name](batch)
    found = []
    for most in (N, 3):
        said, sizes = {}, []
        for share, (part, lam_B, own) in split_batch((batch, lam, generators(0, 1, range(N))), most):
            parts = objective(family, part, lam_B, own)
            (parts["loss"] * share).backward()
            said = {key: said.get(key, 0) + share * value.item() for key, value in parts.items()}
            sizes.append(len(part.x))
        found.append((said, {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}))
        for p in parameters.values():
            p.grad = None
    assert sizes == [3, 3, 1]
    (said, gradient), (said_split_batch, in_parts_gradient) = found
    assert said_split_batch == pytest.approx(said, rel=1e-6) and said["loss"] > 0.1
    assert gradient.keys() == in_parts_gradient.keys()
    for key, g in gradient.items():
        assert (in_parts_gradient[key] - g).norm() <= 1e-6 * g.norm(), key


def test_parts_are_the_same_draws(drawn):
    _, _, batch, lam = drawn
    own = generators(0, 1, range(N))
    assert [share for share, _ in split_batch((batch, lam, own), 4)] == [4 / 7, 3 / 7]
    parts = [part for _, part in split_batch((batch, lam, own), 4)]
    for name in ("x", "eps", "mask"):
        assert torch.equal(torch.cat([getattr(part[0], name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part[0].cond["text"] for part in parts]), batch.cond["text"])
    assert (*parts[0][0].prompts, *parts[1][0].prompts) == batch.prompts
    assert torch.equal(torch.cat([part[1] for part in parts]), lam)
    assert [*parts[0][2], *parts[1][2]] == own and [part[0].part for part in parts] == [(0, 7), (4, 7)]
    assert list(split_batch((batch, lam, own), 7)) == [(1.0, (batch, lam, own))]


def test_how_many_at_once():
    """mini-sd3's card: 64 + 33 tokens in most batches, 64 + 288 in some; of eight, two go together."""
    config = resolve(batch=8)
    conds = {n: {"text": torch.zeros(1, 32 + n, 1)} for n in (1, 256)}
    draws = Draws(config, None, Prepared(torch.zeros(1, 16, 16, 16), conds, {1: 0.95, 256: 0.05}))
    found = {draws.length(step): draws.at_once(step, 2) for step in range(200)}
    assert found == {1: 8, 256: 2}
    one = replace(draws, config=change(config, batch=1))
    assert {one.at_once(step, 2) for step in range(200)} == {1}


def test_a_run_in_parts_is_the_run(tiny_sd3, picture, tmp_path, monkeypatch):
    about = {"image": [str(picture)], "caption": ["a rocket in ink style"], "preview": False, "tensorboard": False}
    config = resolve(base=str(tiny_sd3), rank=4, steps=3, out=str(tmp_path / "whole"), **about)
    runs = []
    for name, most in (("whole", 3), ("parts", 2)):
        monkeypatch.setattr(Draws, "at_once", lambda self, step, patch, most=most: most)
        run = change(config, out=tmp_path / name)
        train(run)
        runs.append((run.out / "metrics.jsonl").read_text().splitlines())
    assert len(runs[0]) == 3 and runs[0] != runs[1]
    for one, two in zip(*(map(json.loads, rows) for rows in runs), strict=True):
        assert one["lam"] == two["lam"] and two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
