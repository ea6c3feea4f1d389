"""Full fine-tuning: the style folder is a base, a style moves the weights, what needs the base is refused."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from impasto.bases.loader import load
from impasto.config import resolve
from impasto.errors import UserError
from impasto.generation import generate
from impasto.sampling.sample import Sampling
from impasto.styles.load import load_style
from impasto.training.train import dry_run, train

PLAIN = Sampling(2, negative="", style_guidance=0.0)


def config_of(base, picture, out, **keys):
    given = {"image": [str(picture)], "caption": ["a rocket in ink style"], "preview": False, "tensorboard": False}
    return resolve(
        "uniform", str(base), out=out, size=16, batch=2, **{"adapter": "full", "steps": 2, "lr": 1e-3, **given, **keys}
    )


@pytest.fixture
def tuned(tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "tuned")
    train(config)
    return config.out


def unet(pipe):
    return {name: t.clone() for name, t in pipe.unet.state_dict().items()}


def test_full_style_folder_is_a_base_for_impasto_and_diffusers(tiny_sd15, tuned):
    weights = load_file(tuned / "full.safetensors")
    loaded = DiffusionPipeline.from_pretrained(tuned).unet.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.items())
    original = load(str(tiny_sd15), device="cpu", precision="fp32").denoiser.state_dict()
    assert not any(torch.equal(original[name], t) for name, t in weights.items() if name.endswith("attn1.to_q.weight"))
    as_base = [np.asarray(image) for image, _ in generate(str(tuned), ["a cat"], sampling=PLAIN)]
    as_style = [np.asarray(i) for i, _ in generate(str(tiny_sd15), ["a cat"], styles=[f"{tuned}:1"], sampling=PLAIN)]
    assert np.array_equal(as_base[0], as_style[0])


def test_full_style_at_half_strength_is_the_mean_of_base_and_tuned(tiny_sd15, tuned):
    pipe = load(str(tiny_sd15), device="cpu", precision="fp32").pipeline()
    before = unet(pipe)
    load_style(pipe, tuned, 0.5)
    weights = load_file(tuned / "full.safetensors")
    for name, tensor in unet(pipe).items():
        assert torch.allclose(tensor, (before[name] + weights[name]) / 2, atol=1e-6)


def test_full_resumed_run_equals_uninterrupted_run(tiny_sd15, picture, tuned, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "again", checkpoint_every=1)

    def stop(phase, step=0, total=None, note=""):
        if phase == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, stop)
    assert not (config.out / "full.safetensors").exists()
    train(config)
    assert (config.out / "full.safetensors").read_bytes() == (tuned / "full.safetensors").read_bytes()


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"objective": "dco"}, "objective dco"),
        ({"prior.weight": 1.0}, "prior.target"),
        ({"offload": "on"}, "offload"),
    ],
)
def test_full_with_what_needs_the_frozen_base_is_refused(tiny_sd15, picture, tmp_path, keys, named):
    config = config_of(tiny_sd15, picture, tmp_path / "x", **keys)
    with pytest.raises(UserError, match=named):
        dry_run(config)


def test_full_of_another_base_is_refused(tiny_sdxl, tuned):
    pipe = load(str(tiny_sdxl), device="cpu", precision="fp32").pipeline()
    with pytest.raises(UserError, match="not trained from this base"):
        load_style(pipe, tuned)
