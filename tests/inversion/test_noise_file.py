"""Inversion noise on disk."""

import pytest
import torch
from safetensors.torch import save_file

from impasto.errors import UserError
from impasto.inversion.noise_file import InversionNoise, NoiseInfo, read, write


def noise():
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    log_snr = torch.tensor([torch.inf, 2.0, -torch.inf], dtype=torch.float64)
    return InversionNoise(z, log_snr, NoiseInfo("a" * 64, 16, 50, "a cat in neon style, \u00e9", "b" * 64))


def test_noise_read_is_the_noise_written(tmp_path):
    write(tmp_path / "one.safetensors", noise())
    found = read(tmp_path / "one.safetensors")
    assert torch.equal(found.noise, noise().noise) and torch.equal(found.log_snr, noise().log_snr)
    assert found.info == noise().info and found.level == -torch.inf
    write(tmp_path / "two.safetensors", found)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    found.check("a" * 64, 16)


@pytest.mark.parametrize(
    ("base_hash", "size", "message"), [("c" * 64, 16, "another base"), ("a" * 64, 32, "of 16 px .* at 32 px")]
)
def test_noise_of_another_base_or_size_raises(base_hash, size, message):
    with pytest.raises(UserError, match=message):
        noise().check(base_hash, size)


@pytest.mark.parametrize("damage", ["cut", "bit", "header"])
def test_damaged_noise_file_raises(damage, tmp_path):
    file = tmp_path / "noise.safetensors"
    write(file, noise())
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[:-20]
    else:
        data[-5 if damage == "bit" else 3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        read(file)


def test_file_that_is_not_noise_raises(tmp_path):
    save_file({"noise": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="is not inversion noise"):
        read(tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="there is no inversion noise"):
        read(tmp_path / "none.safetensors")
