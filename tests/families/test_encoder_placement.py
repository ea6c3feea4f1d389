"""Placement of the text encoders: on the device, or on the CPU if a GPU has no memory for them."""

import warnings

import pytest
import torch

from impasto.bases.loader import load
from impasto.families import pipeline as folder


def test_encoders_fit_warns_by_free_memory(tiny_sd3, monkeypatch):
    pipe = load(str(tiny_sd3), device="cpu").encoders
    free = {"cuda:0": 1e9, "cuda:1": 3e9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 8e9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            folder.encoders_fit(pipe, "cpu")
            and folder.encoders_fit(pipe, "mps")
            and folder.encoders_fit(pipe, "cuda:1")
        )
    with pytest.warns(UserWarning, match=r"text encoders take 0 GB and 1 are free: captions are encoded on the CPU"):
        assert not folder.encoders_fit(pipe, "cuda:0")


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux", "tiny_sdxl", "tiny_sd15"])
def test_encode_prompt_without_gpu_memory_runs_on_cpu(base, request, monkeypatch):
    base = str(request.getfixturevalue(base))
    prompts = ["a rocket in ink style"]
    expected = load(base, device="cpu").encode_prompt(prompts)
    asked = []
    monkeypatch.setattr(folder, "encoders_fit", lambda pipe, device: asked.append(device) or False)
    family = load(base, device="cpu")
    family.device = "meta"  # cannot compute
    found = family.encode_prompt(prompts)
    assert asked == ["meta"] and family.encoders.device.type == "cpu"
    assert {name: t.device.type for name, t in found.items()} == dict.fromkeys(expected, "meta")
    with torch.no_grad():
        on_cpu = family.embed(family.encoders, prompts, next(iter(family.text_lengths)), "cpu")
    assert all(torch.equal(on_cpu[name], t) for name, t in expected.items())
