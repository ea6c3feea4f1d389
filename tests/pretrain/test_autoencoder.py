"""The closed-form encoder and the training of the decoder."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from impasto.artworld import load_slice
from impasto.pretrain import autoencoder as ae


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return load_slice().rgb()[:40]


@pytest.fixture(scope="module")
def codec(pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return ae.principal_components(torch.from_numpy(pictures))


def test_write_encoder_matches_convolution(pictures, codec):
    torch.manual_seed(0)
    vae = ae.new_autoencoder()
    ae.write_encoder(vae, *codec)
    x = torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    expected = F.conv2d(x, *codec, stride=8)
    assert torch.allclose(posterior.mean, expected, atol=2e-3)
    assert float(posterior.std.max()) < 1e-6  # deterministic


def test_read_encoder_inverts_write_encoder(codec):
    vae = ae.new_autoencoder()
    ae.write_encoder(vae, *codec)
    kernel, bias = ae.read_encoder(vae)
    assert torch.allclose(kernel, codec[0], atol=1e-3) and torch.allclose(bias, codec[1], atol=1e-3)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="not linear"):
        ae.read_encoder(ae.new_autoencoder())


def test_write_encoder_survives_fp16(pictures, codec):
    vae = ae.new_autoencoder()
    ae.write_encoder(vae, *codec)
    x = torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        stored = vae.half().float().encode(x).latent_dist.mean
    expected = F.conv2d(x, *codec, stride=8)
    assert float((stored - expected).pow(2).mean().sqrt()) < 0.01 * float(expected.std())


def test_principal_components_are_centred_ordered_and_scaled(pictures, codec):
    kernel, bias = codec
    assert kernel.shape == (16, 3, 8, 8) and bias.shape == (16,)
    loud = kernel.flatten(1).norm(dim=1)  # 1 / sqrt(spread): rises as the variance falls
    assert bool((loud[1:] >= loud[:-1] - 1e-6).all())
    flat = F.conv2d(torch.zeros(1, 3, 8, 8), kernel, bias, stride=8)
    assert float(flat.abs().max()) < 10


def test_linear_psnr_is_that_of_projection(pictures, codec):
    """Encoding a decoded image gives the same latents."""
    kernel, bias = codec
    weight = kernel.reshape(16, -1).double()
    x = torch.from_numpy(pictures[:4]).permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = F.unfold(x, 8, stride=8).transpose(1, 2)
    y = (patches @ weight.T) @ torch.linalg.pinv(weight).T
    assert torch.allclose(y @ weight.T, patches @ weight.T, atol=1e-8)
    assert ae.linear_psnr(pictures[:4], kernel, bias).min() > 10


class Steps:
    """A clock that counts steps instead of seconds: `total` in all, `spent` of them in earlier sessions."""

    limit = 1.0

    def __init__(self, total: float, spent: float) -> None:
        self.total, self.seconds = total, spent

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def progress(self) -> float:
        return self.seconds / self.total

    @property
    def stop(self) -> bool:
        self.seconds += 1
        return self.seconds > self.limit


def test_train_decoder_learns_stops_and_resumes(pictures, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(ae, "Clock", Steps)
    torch.manual_seed(0)
    vae = ae.new_autoencoder()
    ae.write_encoder(vae, *codec)
    before = ae.psnr(vae, pictures[:4]).mean()
    seen = []
    for limit in (12, 30):
        monkeypatch.setattr(Steps, "limit", limit)
        ae.train_decoder(vae, *codec, pictures, tmp_path, total_minutes=31)
        state = ae.load_state(tmp_path, {})
        assert state is not None
        seen.append(state["step"])
    assert seen[0] == 12 and seen[1] == 29  # one tick was counted twice, at the stop between the sessions
    assert ae.psnr(vae, pictures[:4]).mean() > before + 0.5
