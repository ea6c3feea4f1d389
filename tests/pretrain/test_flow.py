"""The base's objective and its bookkeeping, on a tiny model."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from impasto.pretrain import base as flow


class Oracle(torch.nn.Module):
    """Predicts the true velocity, shifted by `off`."""

    def __init__(self, x0: torch.Tensor, eps: torch.Tensor, off: float) -> None:
        super().__init__()
        self.v = eps - x0 + off

    def forward(self, hidden_states, timestep, **_):
        self.x_t, self.timestep = hidden_states, timestep
        return (self.v,)


def test_the_loss_is_that_of_rectified_flow():
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 16, 16, 16, generator=g) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9])
    oracle = Oracle(x0, eps, 0.5)
    loss = flow.flow_loss(oracle, x0, eps, t, torch.zeros(3, 33, 200), torch.zeros(3, 200))
    assert float(loss) == pytest.approx(0.25, rel=1e-5)
    assert torch.allclose(oracle.timestep, 1000 * t)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # the pipeline's own mixing at the same level
    index = torch.tensor([100])
    mixed = scheduler.scale_noise(x0[:1], scheduler.timesteps[index], eps[:1])
    sigma = scheduler.sigmas[index]
    flow.flow_loss(oracle, x0[:1], eps[:1], sigma, torch.zeros(1, 33, 200), torch.zeros(1, 200))
    assert torch.allclose(mixed, oracle.x_t, atol=1e-6)


def _bank() -> flow.Bank:
    class Pool:
        def draw(self, n, shares, rng):
            return rng.integers(10, size=n)

    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 90, (10, flow.CAPTIONS, 32), generator=g, dtype=torch.int16)
    return flow.Bank(torch.randn(10, 16, 16, 16, generator=g).half(), ids, torch.ones(32, dtype=torch.int16), Pool())  # type: ignore[arg-type]


def test_a_batch_is_a_function_of_seed_and_step():
    bank = _bank()
    a, b, c = flow.draw(bank, 8, 0, 5, {}), flow.draw(bank, 8, 0, 5, {}), flow.draw(bank, 8, 0, 6, {})
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[3], c[3])
    t = torch.cat([flow.draw(bank, 64, 0, s, {})[2] for s in range(60)])
    assert float(torch.logit(t).mean()) == pytest.approx(0.2, abs=0.06)
    assert float(torch.logit(t).std()) == pytest.approx(1.0, abs=0.06)
    empty = torch.cat([(flow.draw(bank, 64, 0, s, {})[1] == bank.empty).all(1) for s in range(60)])
    assert float(empty.float().mean()) == pytest.approx(flow.DROPPED, abs=0.02)
    assert bool((bank.ids != 1).any(-1).all())  # dropping a caption does not write into the bank


def test_every_parameter_is_in_one_optimiser():
    model = flow.new_transformer("small")
    muon, adamw = flow.optimizers(model, 1e-3)
    owned = [id(p) for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])


def test_the_rate_warms_up_holds_and_falls_to_zero():
    model = torch.nn.Linear(2, 2)
    opts = [torch.optim.SGD(model.parameters(), lr=1.0), torch.optim.SGD(model.parameters(), lr=1.0)]
    assert flow.set_progress(opts, 1.0, 0, 0.0) == pytest.approx(0.01)
    assert flow.set_progress(opts, 1.0, 500, 0.5) == 1.0
    assert opts[1].param_groups[0]["lr"] == 0.5
    assert flow.set_progress(opts, 1.0, 500, 1.0) < 2e-3


def test_the_schedule_of_the_scheduler_is_linear():
    sigmas = np.asarray(flow.new_scheduler().sigmas)
    assert np.allclose(np.diff(sigmas), -1 / 1000, atol=2e-6)
