"""Samplers by name: diffusers' own results, the same image at any batch size, and what is refused."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.generation import generate, generate_folder
from impasto.guidance.config import PromptSwitch
from impasto.guidance.prompt_switch import grid
from impasto.sampling.config import GenerateConfig
from impasto.sampling.png import read_png_metadata
from impasto.sampling.sample import Sampling
from impasto.sampling.samplers import SAMPLERS, make_scheduler

OTHERS = [name for name in SAMPLERS if name != "default"]


def pixels(image):
    return np.asarray(image).astype(int)


def images(base, sampler, batch=4, prompts=("a cat", "a star", "a rocket", "a cactus"), **more):
    sampling = Sampling(steps=6, batch=batch, sampler=sampler)
    return [(pixels(image), info) for image, info in generate(str(base), prompts, seed=3, sampling=sampling, **more)]


@pytest.mark.parametrize("name", OTHERS)
def test_sampler_is_diffusers_own(tiny_sd15, name):
    (image, info), *_ = images(tiny_sd15, name, batch=1)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd15)
    kind, own = getattr(diffusers, SAMPLERS[name].diffusion), {"clip_sample": False} if name == "ddim" else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **own)
    call = {"num_inference_steps": 6, "guidance_scale": 3.0, "generator": torch.Generator("cpu").manual_seed(3)}
    assert (image == pixels(pipe("a cat", **call).images[0])).all()
    assert info["sampler"] == name


@pytest.mark.parametrize("base", ["tiny_sd15", "tiny_sdxl"])
@pytest.mark.parametrize("name", OTHERS)
def test_sampler_at_another_batch_size_gives_the_same_images(request, base, name):
    base = request.getfixturevalue(base)
    for (one, _), (four, _) in zip(images(base, name, 1), images(base, name, 4), strict=True):
        assert abs(one - four).max() <= 1


def test_samplers_give_different_images(tiny_sd15):
    first = {name: images(tiny_sd15, name, 1, ["a cat"])[0][0].tobytes() for name in OTHERS}
    assert len(set(first.values())) == len(OTHERS)


def test_default_sampler_is_the_base_s_own_and_is_not_recorded(tiny_sd15):
    (plain, info), (default, other) = (images(tiny_sd15, name, 1, ["a cat"])[0] for name in (None, "default"))
    assert (plain == default).all() and info == other and "sampler" not in info


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux"])
def test_euler_on_a_rectified_flow_is_its_own_and_others_are_refused(request, base):
    base = request.getfixturevalue(base)
    (own, _), (euler, info) = (images(base, name, 1, ["a cat"])[0] for name in (None, "euler"))
    assert (own == euler).all() and info["sampler"] == "euler"
    with pytest.raises(UserError, match=r"^sampler 'euler-ancestral' is not for this base.* use default or euler$"):
        images(base, "euler-ancestral")


def test_unknown_sampler_names_the_nearest(tiny_sd15):
    with pytest.raises(UserError, match="unknown sampler 'euler-ancestra': did you mean 'euler-ancestral'"):
        images(tiny_sd15, "euler-ancestra")


@pytest.mark.parametrize("name", OTHERS)
def test_grid_of_a_sampler_has_the_levels_of_its_steps(tiny_sd15, name):
    family = load(str(tiny_sd15), device="cpu")
    scheduler = make_scheduler(name, family)(family.config("scheduler"))
    scheduler.set_timesteps(6)
    assert (
        grid(family, 6, 16, make_scheduler(name, family))
        == family.schedule.log_snr(scheduler.timesteps.double()).tolist()
    )


def test_prompt_switch_with_a_sampler_switches_at_the_sampler_s_levels(tiny_sd15):
    switch = PromptSwitch("{prompt} in ink style", -1.0)
    (image, info), *_ = images(tiny_sd15, "dpm++-2m", 1, ["a cat"], guidances=[switch])
    family = load(str(tiny_sd15), device="cpu")
    own, others = grid(family, 6, 16, make_scheduler("dpm++-2m", family)), grid(family, 6, 16)
    assert info["log_snr"] == pytest.approx(own, abs=1e-5) != pytest.approx(others, abs=1e-5)
    assert (image != images(tiny_sd15, "dpm++-2m", 1, ["a cat"])[0][0]).any()


def test_sampler_of_flag_before_card(tiny_sd15, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for part in tiny_sd15.iterdir():
        (folder / part.name).symlink_to(part)
    card = json.loads((tiny_sd15 / "impasto.json").read_text())
    card["generate"]["sampler"] = "ddim"
    (folder / "impasto.json").unlink()
    (folder / "impasto.json").write_text(json.dumps(card))
    assert images(folder, None, 1, ["a cat"])[0][1]["sampler"] == "ddim"
    assert images(folder, "euler", 1, ["a cat"])[0][1]["sampler"] == "euler"
    assert "sampler" not in images(folder, "default", 1, ["a cat"])[0][1]


def test_png_states_the_sampler(tiny_sd15, tmp_path):
    from PIL import Image

    config = GenerateConfig(str(tiny_sd15), prompt=("a cat",), out=tmp_path / "o", steps=2, sampler="euler-ancestral")
    assert generate_folder(config)["sampler"] == "euler-ancestral"
    assert read_png_metadata(tmp_path / "o" / "0000.png")["sampler"] == "euler-ancestral"
    with Image.open(tmp_path / "o" / "0000.png") as image:
        assert "Steps: 2, Sampler: Euler a, CFG scale" in image.info["parameters"]
