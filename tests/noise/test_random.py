"""Randomness is a function of (seed, step, item)."""

import torch

from impasto.noise.random import generator, generators


def noise(g):
    return torch.randn(4, generator=g)


def test_generator_same_arguments_same_draws():
    assert torch.equal(noise(generator(1, 2, 3)), noise(generator(1, 2, 3)))


def test_generator_other_arguments_other_draws():
    first = [noise(generator(s, t, i)) for s in range(6) for t in range(6) for i in range(6)]
    assert len({tuple(x.tolist()) for x in first}) == 216


def test_generators_do_not_depend_on_batch():
    alone = [noise(generator(0, 7, i)) for i in range(8)]
    halves = [noise(g) for part in (range(4), range(4, 8)) for g in generators(0, 7, part)]
    assert all(torch.equal(a, b) for a, b in zip(alone, halves, strict=True))


def test_generators_of_neighbours_are_uncorrelated():
    x = torch.stack([torch.randn(200, generator=g) for g in generators(0, 0, range(60))])
    correlation = torch.corrcoef(x) - torch.eye(60)
    assert correlation.abs().max() < 0.4
    assert abs(x.mean().item()) < 0.03 and abs(x.std().item() - 1) < 0.03


def test_generator_leaves_global_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    noise(generator(1, 1, 1))
    assert torch.equal(torch.get_rng_state(), before)
