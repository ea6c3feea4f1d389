"""Where the text encoders compute: on the device, or in main memory where a GPU has no room for them."""

import warnings

import pytest
import torch

from impasto.bases.loader import load
from impasto.families import pipeline as folder


def test_a_gpu_holds_them_or_not(tiny_sd3, monkeypatch):
    pipe = load(str(tiny_sd3), device="cpu").encoders
    free = {"cuda:0": 1e9, "cuda:1": 3e9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 8e9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.room(pipe, "cpu") and folder.room(pipe, "mps") and folder.room(pipe, "cuda:1")
    with pytest.warns(UserWarning, match=r"text encoders take 0 GB and 1 are free: captions are encoded on the CPU"):
        assert not folder.room(pipe, "cuda:0")


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux", "tiny_sdxl", "tiny_sd15"])
def test_without_room_the_same_is_encoded_in_main_memory(base, request, monkeypatch):
    base = str(request.getfixturevalue(base))
    prompts = ["a rocket in ink style"]
    expected = load(base, device="cpu").encode_prompt(prompts)
    asked = []
    monkeypatch.setattr(folder, "room", lambda pipe, device: asked.append(device) or False)
    family = load(base, device="cpu")
    family.device = "meta"  # a device that can compute nothing
    found = family.encode_prompt(prompts)
    assert asked == ["meta"] and family.encoders.device.type == "cpu"
    assert {name: t.device.type for name, t in found.items()} == dict.fromkeys(expected, "meta")
    with torch.no_grad():
        told = family.embed(family.encoders, prompts, next(iter(family.text_lengths)), "cpu")
    assert all(torch.equal(told[name], t) for name, t in expected.items())
