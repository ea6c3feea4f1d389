"""The image tokeniser: its codebook, its closed-form encoder, and the decoder's training."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import VQModel

from impasto.artworld import load_slice
from impasto.pretrain import image_tokenizer as vq
from impasto.pretrain.autoencoder import principal_components
from impasto.pretrain.state import Clock


@pytest.fixture(scope="module")
def world():
    return load_slice(styles=["fluent-emoji-3d", "streamline-emojis"])


@pytest.fixture(scope="module")
def made(world):
    """(images, kernel, bias, codebook of 64)."""
    rgb = world.rgb()[:24]
    kernel, bias = principal_components(torch.from_numpy(rgb), patch=4)
    z = vq.distinct_patches(vq.patch_latents(rgb, kernel, bias).permute(0, 2, 3, 1).reshape(-1, 16))
    return rgb, kernel, bias, vq.kmeans(z, 64, rounds=4, log=lambda row: None)


def test_kmeans_finds_clusters_and_leaves_none_empty():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    z = (centres[:, None] + 0.1 * torch.randn(4, 50, 2, generator=g)).reshape(-1, 2)
    found = vq.kmeans(z, 12, rounds=8, log=lambda row: None)
    index = vq.nearest_codes(z, found)
    assert (z - found[index]).norm(dim=1).max() < 0.4 and index.bincount(minlength=12).min() > 0
    assert torch.equal(vq.nearest_codes(z, found, chunk=7), torch.cdist(z, found).argmin(1))
    repeated = torch.zeros(20, 2)
    repeated[:3] = torch.eye(3)[:, :2] + 1
    assert len(vq.kmeans(repeated, 4, rounds=8, log=lambda row: None).unique(dim=0)) == 4  # a random start has zeros


def test_distinct_patches_keeps_a_few_copies():
    z = torch.cat([torch.zeros(100, 3), torch.arange(6.0).reshape(2, 3)])
    assert len(vq.distinct_patches(z, most=5)) == 7


@torch.no_grad()
def test_vq_model_has_the_tokens_of_the_convolution(made):
    rgb, kernel, bias, codes = made
    model = vq.closed_form_tokenizer(kernel, bias, codes)
    x = torch.from_numpy(rgb[:4]).permute(0, 3, 1, 2).float() / 255
    z = model.encode(x).latents
    torch.testing.assert_close(z, vq.patch_latents(rgb[:4], kernel, bias), atol=2e-2, rtol=0)
    _, _, (_, _, ids) = model.quantize(z)
    tokens = vq.image_tokens(rgb[:4], kernel, bias, codes)
    assert tokens.shape == (4, 32, 32) and (ids.reshape(tokens.shape) == tokens).float().mean() > 0.99
    flat = vq.patch_latents(rgb[:4], kernel, bias).permute(0, 2, 3, 1).reshape(-1, 16)
    assert torch.equal(tokens.flatten(), vq.nearest_codes(flat, codes))
    read = vq.read_image_tokenizer(model)
    assert (read[0] - kernel).abs().max() < 0.01 and torch.equal(read[2], codes)
    shown = vq.decode_tokens(model, tokens)
    assert shown.shape == (4, 128, 128, 3) and shown.dtype == np.uint8


class Ticks(Clock):
    """Ends after 12 steps in all."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ticks = itertools.count()

    @property
    def stop(self):
        return next(self.ticks) >= 12


def test_decoder_learns_and_a_finished_one_is_left_alone(made, world, tmp_path, monkeypatch):
    rgb, kernel, bias, codes = made
    monkeypatch.setattr(vq, "Clock", Ticks)
    twin = vq.train_twin(rgb, world.style_id[:24], 1, log=lambda row: None)
    assert not any(p.requires_grad for p in twin.parameters())
    model = vq.closed_form_tokenizer(kernel, bias, codes)
    tokens = vq.image_tokens(rgb, kernel, bias, codes)
    before = np.square((vq.decode_tokens(model, tokens).astype(float) - rgb) / 255).mean()

    def encode(images):
        return vq.image_tokens(images, kernel, bias, codes)

    vq.train_decoder(model, encode, rgb, twin, tmp_path, 1, lr=3e-3, log=lambda row: None)
    after = np.square((vq.decode_tokens(model, tokens).astype(float) - rgb) / 255).mean()
    assert after < before
    monkeypatch.setattr(Ticks, "stop", True)
    again = vq.closed_form_tokenizer(kernel, bias, codes)
    vq.train_decoder(again, encode, rgb, twin, tmp_path, 1, log=lambda row: None)
    assert all(torch.equal(a, b) for a, b in zip(again.decoder.parameters(), model.decoder.parameters(), strict=True))
    model.half().save_pretrained(tmp_path / "model")
    assert VQModel.from_pretrained(tmp_path / "model").config.num_vq_embeddings == 64
