"""The image tokeniser: its codebook, its VQModel beside the packaged autoencoder, and the decoder's training."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from impasto.artworld import load_slice
from impasto.files import MODELS
from impasto.pretrain import image_tokenizer as vq
from impasto.pretrain.autoencoder import read_encoder
from impasto.pretrain.state import Clock


@pytest.fixture(scope="module")
def world():
    return load_slice(styles=["fluent-emoji-3d", "streamline-emojis"])


@pytest.fixture(scope="module")
def made(world):
    """(images, autoencoder, kernel, bias, codebook of 64)."""
    rgb = world.rgb()[:24]
    vae = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    kernel, bias = read_encoder(vae)
    z = vq.distinct_patches(vq.patch_latents(rgb, kernel, bias).permute(0, 2, 3, 1).reshape(-1, 16))
    return rgb, vae, kernel, bias, vq.kmeans(z, 64, rounds=4, log=lambda row: None)


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
def test_vq_model_has_the_tokens_of_the_convolution_and_the_autoencoders_decoder(made):
    rgb, vae, kernel, bias, codes = made
    model = vq.from_autoencoder(vae, codes)
    x = torch.from_numpy(rgb[:4]).permute(0, 3, 1, 2).float() / 255
    z = model.encode(x).latents
    _, _, (_, _, ids) = model.quantize(z)
    tokens = vq.image_tokens(rgb[:4], kernel, bias, codes)
    assert (ids.reshape(tokens.shape) == tokens).float().mean() > 0.99
    torch.testing.assert_close(z, vq.patch_latents(rgb[:4], kernel, bias), atol=2e-2, rtol=0)
    own = vae.decode(codes[tokens].permute(0, 3, 1, 2)).sample / 2 + 0.5
    expected = (own.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(vq.decode_tokens(model, tokens).astype(int) - expected).max() <= 1
    read = vq.read_image_tokenizer(model)
    assert (read[0] - kernel).abs().max() < 0.01 and torch.equal(read[2], codes)


class Ticks(Clock):
    """Ends after 12 steps in all."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ticks = itertools.count()

    @property
    def stop(self):
        return next(self.ticks) >= 12


def test_decoder_learns_and_a_finished_one_is_left_alone(made, world, tmp_path, monkeypatch):
    rgb, vae, kernel, bias, codes = made
    monkeypatch.setattr(vq, "Clock", Ticks)
    twin = vq.train_twin(rgb, world.style_id[:24], 1, log=lambda row: None)
    assert not any(p.requires_grad for p in twin.parameters())
    model = vq.from_autoencoder(vae, codes)
    tokens = vq.image_tokens(rgb, kernel, bias, codes)
    before = np.square((vq.decode_tokens(model, tokens).astype(float) - rgb) / 255).mean()

    def encode(images):
        return vq.image_tokens(images, kernel, bias, codes)

    vq.train_decoder(model, encode, rgb, twin, tmp_path, 1, lr=3e-3, log=lambda row: None)
    after = np.square((vq.decode_tokens(model, tokens).astype(float) - rgb) / 255).mean()
    assert after < before
    monkeypatch.setattr(Ticks, "stop", True)
    again = vq.from_autoencoder(vae, codes)
    vq.train_decoder(again, encode, rgb, twin, tmp_path, 1, log=lambda row: None)
    assert all(torch.equal(a, b) for a, b in zip(again.decoder.parameters(), model.decoder.parameters(), strict=True))
    model.half().save_pretrained(tmp_path / "model")
    assert VQModel.from_pretrained(tmp_path / "model").config.num_vq_embeddings == 64
