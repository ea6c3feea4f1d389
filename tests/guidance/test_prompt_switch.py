"""Prompt switching: the ends are the single prompts, the middle is a sampling loop written by hand with diffusers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.files import PACKAGE
from impasto.generation import generate, generate_folder
from impasto.guidance.config import PromptSwitch
from impasto.guidance.prompt_switch import grid, switch_prompts
from impasto.noise.schedule import RectifiedFlow
from impasto.sampling.config import GenerateConfig
from impasto.sampling.sample import Sampling

A, B = "a cat", "a rocket in neon style"
SAMPLING = Sampling(steps=5)


def levels_of(base, steps=5, size=16):
    return grid(load(str(base), device="cpu"), steps, size)


def drawn(base, prompt, switch=None, sampling=SAMPLING):
    image, info = next(generate(str(base), [prompt], seed=3, sampling=sampling, guidances=[switch] if switch else None))
    return np.asarray(image).astype(int), info


def by_hand(base, first: int, guidance: float, steps: int = 5, seed: int = 3) -> np.ndarray:
    """`first` steps of A, then B: a plain loop over diffusers' own parts, one per kind of model."""
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    pipe = DiffusionPipeline.from_pretrained(base)
    kind, scheduler = type(pipe).__name__, pipe.scheduler
    noise = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(seed))
    text = {}
    for name, prompt in (("A", A), ("B", B), ("none", "")):
        if kind == "StableDiffusion3Pipeline":
            text[name] = pipe.encode_prompt(
                prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
        elif kind == "FluxPipeline":
            text[name] = pipe.encode_prompt(prompt, None, max_sequence_length=32)
        elif kind == "StableDiffusionXLPipeline":
            text[name] = pipe.encode_prompt(prompt, None, "cpu", 1, False)
        else:
            text[name] = pipe.encode_prompt(prompt, "cpu", 1, False)
    if kind == "FluxPipeline":
        noise = noise.view(1, 4, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 4, 16)
        mu = calculate_shift(4, 256, 4096, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        ids = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]).float()
    else:
        scheduler.set_timesteps(steps)
    z = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        said, none = text["A" if i < first else "B"], text["none"]
        if kind == "FluxPipeline":
            scale = torch.full((1,), guidance) if pipe.transformer.config.guidance_embeds else None
            told = {"encoder_hidden_states": said[0], "pooled_projections": said[1], "guidance": scale}
            place = {"txt_ids": torch.zeros(said[0].shape[1], 3), "img_ids": ids}
            out = pipe.transformer(z, timestep=t[None] / 1000, **told, **place).sample
        else:
            inputs = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
            inputs = torch.cat([inputs, inputs])
            pair = torch.cat([none[0], said[0]])
            if kind == "StableDiffusion3Pipeline":
                pooled = torch.cat([none[2], said[2]])
                out = pipe.transformer(
                    inputs, timestep=t.expand(2), encoder_hidden_states=pair, pooled_projections=pooled
                ).sample
            elif kind == "StableDiffusionXLPipeline":
                pair = torch.cat([torch.zeros_like(none[0]), said[0]])
                sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2).float()
                added = {"text_embeds": torch.cat([torch.zeros_like(none[2]), said[2]]), "time_ids": sizes}
                out = pipe.unet(inputs, t, encoder_hidden_states=pair, added_cond_kwargs=added).sample
            else:
                out = pipe.unet(inputs, t, encoder_hidden_states=pair).sample
            empty, told = out.chunk(2)
            out = empty + guidance * (told - empty)
        z = scheduler.step(out, t, z, return_dict=False)[0]
    if kind == "FluxPipeline":
        z = z.view(1, 2, 2, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 4, 4)
    z = z / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)
    return np.asarray(pipe.image_processor.postprocess(pipe.vae.decode(z).sample)[0]).astype(int)


@pytest.mark.filterwarnings("ignore:this base takes no guidance")
def test_the_ends_are_the_single_prompts_and_the_middle_is_a_loop_by_hand(tiny_base):
    levels = levels_of(tiny_base)
    guidance = 0.0 if tiny_base.name == "schnell" else 3.0
    sampling = replace(SAMPLING, guidance=guidance)
    only_a, only_b = drawn(tiny_base, A, sampling=sampling)[0], drawn(tiny_base, B, sampling=sampling)[0]
    assert (drawn(tiny_base, A, PromptSwitch(B, -math.inf), sampling)[0] == only_b).all()
    assert (drawn(tiny_base, A, PromptSwitch(B, math.inf), sampling)[0] == only_a).all()
    for first in (1, 3):
        middle, info = drawn(tiny_base, A, PromptSwitch(B, levels[first]), sampling)
        assert info["prompt_of_step"] == [0] * first + [1] * (5 - first)
        with torch.no_grad():
            assert (middle == by_hand(tiny_base, first, guidance)).all()
        assert (middle != only_a).any() and (middle != only_b).any()


@pytest.mark.parametrize("kind", ["sd3", "flux", "sdxl", "sd15"])
def test_pictures_of_a_batch_switch_each_to_its_own(kind, request):
    base = request.getfixturevalue(f"tiny_{kind}")
    switch = PromptSwitch("{prompt} in neon style", levels_of(base)[2])
    prompts = ["a cat", "a rocket"]
    both = list(generate(str(base), prompts, seed=3, sampling=replace(SAMPLING, batch=2), guidances=[switch]))
    for i, (image, info) in enumerate(both):
        assert info["switch_to"] == f"{prompts[i]} in neon style"
        alone, _ = next(generate(str(base), [prompts[i]], seed=3 + i, sampling=SAMPLING, guidances=[switch]))
        assert abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 1


def test_the_grid_of_flux_at_1024(tiny_flux):
    """E12: 4,096 tokens, as FLUX has them at 1024 x 1024."""
    levels = levels_of(tiny_flux, steps=28, size=512)
    assert len(levels) == 28 and levels[0] == -math.inf
    assert levels[1] == pytest.approx(-8.8917, abs=1e-4)
    assert levels[3] == pytest.approx(-6.5405, abs=1e-4)
    family = load(str(tiny_flux), device="cpu")
    switch = switch_prompts(family, str, -6.55, levels)
    assert sum(not second for second in switch.in_second) == 3 and switch.share == pytest.approx(3 / 28)
    assert sum(switch_prompts(family, str, -6.52, levels).in_second) == 24  # the paper prints -6.52 for what is -6.5405


def test_the_published_scheduler_of_flux():
    config = json.loads((PACKAGE / "bases/configs/flux-dev/scheduler/scheduler_config.json").read_text())
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 28, 28), mu=1.15)
    levels = RectifiedFlow().log_snr(scheduler.timesteps.double() / 1000).tolist()
    assert levels[0] == -math.inf and levels[1] == pytest.approx(-8.8917, abs=1e-4)


def test_the_level_is_that_of_the_latent(tiny_sd15):
    """A U-Net's: log(ac / (1 - ac)) of the scheduler's own alphas at its own timesteps; nothing is infinite."""
    pipe = load(str(tiny_sd15), device="cpu").pipeline()
    pipe.scheduler.set_timesteps(5)
    ac = pipe.scheduler.alphas_cumprod.double()[pipe.scheduler.timesteps]
    assert levels_of(tiny_sd15) == pytest.approx((ac / (1 - ac)).log().tolist(), abs=1e-6)


def test_what_the_pictures_and_the_result_tell(tiny_sd3, tmp_path):
    levels = levels_of(tiny_sd3)
    config = GenerateConfig(base=str(tiny_sd3), prompt=(A,), out=tmp_path / "out", steps=5)
    switch = PromptSwitch('{prompt}, "neon"', levels[2] - 1e-3)
    result = generate_folder(replace(config, guidances=(switch,)))
    with Image.open(tmp_path / "out" / "0000.png") as file:
        text = file.text

    def no_constants(name):
        raise AssertionError(f"{name} is no JSON")

    told = json.loads(text["impasto"], parse_constant=no_constants)
    assert told["prompt"] == A and told["switch_to"] == 'a cat, "neon"'
    assert told["log_snr"] == [None, *(round(level, 6) for level in levels[1:])] == result["log_snr"]
    assert told["prompt_of_step"] == [0, 0, 1, 1, 1] and told["switch_share"] == 0.4 == result["switch_share"]
    assert text["parameters"].endswith('Switch to: "a cat, \\"neon\\"", Switch after steps: 2')


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"to": B}, "go together: give --switch-at"),
        ({"at": -3.0}, "go together: give --switch-to"),
        ({"to": " ", "at": -3.0}, "switch-to is empty"),
        ({"to": B, "at": 50.0}, r"outside .* its 5 steps have log-SNR -\d.* after a first one of pure"),
        ({"to": B, "at": math.nan}, "outside"),
        ({"to": B, "at": -3.0, "steps": 1}, "its one step has pure noise"),
    ],
    ids=str,
)
def test_bad_input(tiny_sd3, tmp_path, switch, message):
    config = GenerateConfig(base=str(tiny_sd3), prompt=(A,), out=tmp_path / "out", steps=switch.pop("steps", 5))
    with pytest.raises(UserError, match=message):
        generate_folder(replace(config, guidances=(PromptSwitch(**switch),)))
    assert not list((tmp_path / "out").glob("*.png"))


def test_below_the_levels_of_a_unet(tiny_sd15):
    with pytest.raises(UserError, match="switch-at -9 is outside"):
        drawn(tiny_sd15, A, PromptSwitch(B, -9.0))
