"""The objectives of the two denoisers, against diffusers' schedulers."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.unet import UNet
from impasto.pretrain.uvit import MASK, UViT

G = torch.Generator().manual_seed(0)
X0, EPS = (torch.randn(3, 16, 16, 16, generator=G) for _ in range(2))


class Oracle(torch.nn.Module):
    """Predicts `truth` + `off` and records its inputs."""

    def __init__(self, truth: torch.Tensor, off: float) -> None:
        super().__init__()
        self.truth, self.off = truth, off

    def forward(self, hidden_states, timestep, **_):
        self.x_t, self.timestep = hidden_states, timestep
        return (self.truth[: len(hidden_states)] + self.off,)


def test_mmdit_loss_is_rectified_flow():
    net, oracle = MMDiT(), Oracle(EPS - X0, 0.5)
    t = torch.tensor([0.1, 0.5, 0.9])
    assert float(net.loss(oracle, X0, EPS, t, {})) == pytest.approx(0.25, rel=1e-5)
    assert torch.allclose(oracle.timestep, 1000 * t)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # the pipeline's own mixing at the same level
    index = torch.tensor([100])
    mixed = scheduler.scale_noise(X0[:1], scheduler.timesteps[index], EPS[:1])
    net.loss(oracle, X0[:1], EPS[:1], scheduler.sigmas[index], {})
    assert torch.allclose(mixed, oracle.x_t, atol=1e-6)


def test_mmdit_levels_are_logit_normal():
    t = MMDiT().levels(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    assert float(torch.logit(t).mean()) == pytest.approx(0.2, abs=0.03)
    assert float(torch.logit(t).std()) == pytest.approx(1.0, abs=0.03)


def test_mmdit_signal_is_linear():
    assert np.allclose(np.diff(np.asarray(MMDiT().scheduler().sigmas)), -1 / 1000, atol=2e-6)


def test_unet_loss_is_weighted_noise_error():
    net, oracle = UNet(), Oracle(EPS, 0.5)
    t = torch.tensor([10, 500, 900])
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    assert float(snr[0]) > 25 > float(snr[1]) > 0.1 > float(snr[2])
    expected = 0.25 * torch.minimum(snr**-0.5, 5 / snr).mean()
    assert float(net.loss(oracle, X0, EPS, t, {})) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(oracle.x_t, scheduler.add_noise(X0, EPS, t), atol=1e-6)
    assert torch.equal(oracle.timestep, t)


def test_unet_levels_are_uniform():
    t = UNet().levels(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    assert t.dtype == torch.int64 and int(t.min()) >= 0 and int(t.max()) <= 999
    share = torch.bincount(t // 100, minlength=10) / len(t)
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.01)
    assert UNet().levels(torch.tensor([-40.0, 40.0])).tolist() == [0, 999]


def test_uvit_loss_is_the_cross_entropy_of_the_masked_tokens():
    net, g = UViT(), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = net.new((1, 1))
    x0 = torch.randint(4096, (2, 1, 4, 4), generator=g)
    eps, t = torch.randn(x0.shape, generator=g), torch.tensor([0.25, 0.75])
    cond = {"encoder_hidden_states": torch.randn(2, 5, 192), "pooled_text_emb": torch.randn(2, 192)}
    loss = net.loss(model, x0, eps, t, cond)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.embed.forward = type(model.embed).forward.__get__(model.embed)  # diffusers' own
    z = net.schedule.add_noise(x0, eps, net.schedule.log_snr(t))
    masked = (z == MASK)[:, 0]  # fewer than PLACES: all of them count
    assert masked.flatten(1).sum(1).tolist() == [4, 12]
    micro = torch.tensor([[128.0, 128, 0, 0, 6]] * 2)
    logits = model(z[:, 0], micro_conds=micro, **cond)
    expected = torch.nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[masked], x0[:, 0][masked])
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], msg=name)


def test_uvit_compiled_loss_is_the_eager_one(monkeypatch):
    """Traced by dynamo and run by PyTorch's own kernels, which need no compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    net, g = UViT(), torch.Generator().manual_seed(1)
    model = net.new((1, 1))
    x0 = torch.randint(4096, (2, 1, 4, 4), generator=g)
    eps, t = torch.randn(x0.shape, generator=g), torch.tensor([0.25, 0.75])
    text, pooled = torch.randn(2, 5, 192, generator=g), torch.randn(2, 192, generator=g)
    cond = {"encoder_hidden_states": text, "pooled_text_emb": pooled}
    found = []
    for trained in (model, net.compile(model)):
        loss = net.loss(trained, x0, eps, t, cond)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1])


def test_uvit_levels_are_cosine_mask_ratios():
    m = UViT().levels(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    assert float(m.mean()) == pytest.approx(2 / np.pi, abs=0.01)
    assert float((m < 0.5).float().mean()) == pytest.approx(1 - 2 / np.pi * np.arccos(0.5), abs=0.01)
    assert UViT().levels(torch.tensor([2.0])) > UViT().levels(torch.tensor([-2.0]))
