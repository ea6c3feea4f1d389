"""Full updates as a LoRA."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from impasto.adapters import full_rank
from impasto.adapters.base import adapter_of
from impasto.adapters.config import FullRankLoRA
from impasto.bases import loader
from impasto.config import resolve
from impasto.errors import UserError
from impasto.interop.lora.read import read
from impasto.styles.load import load_style
from impasto.styles.weights import WEIGHTS, read_file
from impasto.training.train import train


def predict(family, text):
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return family.predict(z, torch.zeros(1), {"text": text})


def test_a_step_is_that_of_the_weights_themselves(tiny_sd15):
    """Against training W: the same gradient for B as for W, and no A among the parameters."""
    settings = FullRankLoRA()
    tuned, plain = (loader.load(str(tiny_sd15), device="cpu") for _ in range(2))
    text = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))
    parameters = full_rank.attach(tuned, settings, 0)
    assert sum(p.numel() for p in parameters.values()) == full_rank.count(plain, settings, plain.denoiser)
    assert torch.equal(predict(tuned, text), predict(plain, text))
    names = [name.replace(".lora_B.default", "") for name in parameters]
    own = dict(plain.denoiser.named_parameters())
    for name in names:
        own[name].requires_grad_(True)
    for family in (tuned, plain):
        predict(family, text).square().mean().backward()
    for name, p in zip(names, parameters.values(), strict=True):
        assert torch.allclose(p.grad, own[name].grad, atol=1e-6) and p.grad.abs().max() > 0


def test_first_token_gives_no_gradient(tiny_sd15):
    family = loader.load(str(tiny_sd15), device="cpu")
    parameters = full_rank.attach(family, FullRankLoRA(block_first_token=True), 0)
    only_first = torch.zeros(1, 8, 16)
    only_first[:, 0] = 1  # the inputs of all other tokens are zero, and so is their gradient
    predict(family, only_first).square().mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in parameters.values())
    predict(family, only_first.flip(1)).square().mean().backward()
    assert any(p.grad.any() for p in parameters.values())


def test_trained_file_is_a_plain_lora(tiny_sd15, picture, tmp_path):
    keys = {"adapter": "full-rank", "steps": 2, "preview": False, "tensorboard": False, "lr": 1e-2}
    files = {"image": [str(picture)], "caption": ["a cat in ink style"], "out": str(tmp_path / "x")}
    config = resolve("uniform", str(tiny_sd15), **keys | files)
    train(config)
    tensors, metadata = read_file(config.out / WEIGHTS)
    adapter = read(tensors, metadata, architecture="sd15")
    assert {lora.rank for lora in adapter.layers.values()} == {16} and {x.scale for x in adapter.layers.values()} == {1}
    assert all(torch.equal(lora.down, torch.eye(16)) for lora in adapter.layers.values())
    load_style(StableDiffusionPipeline.from_pretrained(tiny_sd15), config.out)
    assert adapter_of(config.adapter).kind == "lora"


def test_layers_of_several_widths_raise(tiny_sd15):
    family = loader.load(str(tiny_sd15), device="cpu")
    with pytest.raises(UserError, match="one input width"):
        full_rank.attach(family, FullRankLoRA(targets=("attention",)), 0)
