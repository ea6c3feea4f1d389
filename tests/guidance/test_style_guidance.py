"""Style guidance: the formula, for every family's own pipeline, against predictions taken one by one."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.adapters import io
from impasto.adapters.lora import add, disabled
from impasto.config import GenerateConfig
from impasto.errors import UserError
from impasto.families import load
from impasto.generate import Sampling, generate, generate_folder
from impasto.guidance.style_guidance import guiding


def with_lora(base):
    """The family with a LoRA that does something."""
    family = load(str(base), device="cpu", precision="fp32")
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in add(family, rank=4, alpha=6.0, targets=("attention",), seed=0).items():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=shared))
    return family


@pytest.fixture
def style(tiny_base, tmp_path):
    io.save(with_lora(tiny_base), tmp_path / "style")
    return tmp_path / "style"


def drawn(base, style=None, **sampling):
    styles = [str(style)] if style else []
    guidance = 3.0 if load(str(base), device="cpu").guided_by != "nothing" else None
    settings = Sampling(steps=3, **{"guidance": guidance} | sampling)
    images, info = zip(
        *generate(str(base), ["a cat", "a rocket"], styles=styles, seed=3, sampling=settings), strict=True
    )
    return np.stack([np.asarray(image) for image in images]).astype(int), info[0]


@torch.no_grad()
def test_the_pipelines_guidance_becomes_the_formula(tiny_base, style):
    """What the sampler gets in each step, against base and style asked alone with the very same inputs."""
    family = load(str(tiny_base), device="cpu", precision="fp32")
    pipe = family.pipeline()
    denoiser = getattr(pipe, family.part)
    io.load_style(pipe, style, 1.0)
    cond, none = (family.encode_prompt([text], pipe=pipe) for text in ("a cat", ""))
    compared = family.guided_by == "negative"
    call = family.call_arguments(cond, none if compared else None)
    w = 3.0 if compared else 1.0
    for weight in (0.0, 1.3, w, 7.0):
        plain = denoiser.forward
        with guiding(denoiser, weight, w if compared else None):
            guided = denoiser.forward
            seen = []

            def watch(*args, guided=guided, seen=seen, **kwargs):
                out = guided(*args, **kwargs)
                seen.append((args, kwargs, out[0].clone()))
                return out

            denoiser.forward = watch
            pipe.set_progress_bar_config(disable=True)
            pipe(**call, num_inference_steps=2, guidance_scale=3.0, height=16, width=16,
                 generator=torch.Generator().manual_seed(0), output_type="latent")  # fmt: skip
            denoiser.forward = guided
        assert denoiser.forward == plain and len(seen) == 2
        for args, kwargs, out in seen:
            both = partial(plain, *args, **kwargs)
            styled = both()[0]
            with disabled(denoiser):
                base = both()[0]
            if compared:
                n, y = base.chunk(2)
                expected = n + w * (y - n) + weight * (styled.chunk(2)[1] - y)
                u, c = out.chunk(2)
                found = u + w * (c - u)
            else:
                expected, found = base + weight * (styled - base), out
            scale = (styled - base).abs().max()
            assert scale > 1e-3 and (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


def test_zero_is_the_base_and_more_is_further_from_it(tiny_base, style):
    base, info = drawn(tiny_base)
    assert "style_guidance" not in info
    none, info = drawn(tiny_base, style, style_guidance=0.0)
    assert np.abs(none - base).max() <= 1 and info["style_guidance"] == 0.0
    some, much = (np.abs(drawn(tiny_base, style, style_guidance=s)[0] - base).mean() for s in (0.3, 3.0))
    assert 0 < some < much


def test_without_guidance_one_is_the_style_alone(tiny_base, style):
    settings = {"guidance": 1.0} if load(str(tiny_base), device="cpu").guided_by == "negative" else {}
    alone, _ = drawn(tiny_base, style, **settings)
    weighed, _ = drawn(tiny_base, style, style_guidance=1.0, **settings)
    assert np.abs(alone - weighed).max() <= 1


def test_the_picture_tells_it_and_the_batch_does_not_matter(tiny_sd3, tmp_path):
    io.save(with_lora(tiny_sd3), tmp_path / "style")
    folders = []
    for batch in (1, 2):
        folders.append(tmp_path / f"out{batch}")
        generate_folder(
            GenerateConfig(
                base=str(tiny_sd3),
                prompt=("a cat", "a dog"),
                style=(str(tmp_path / "style"),),
                steps=2,
                style_guidance=2.0,
                batch=batch,
                out=folders[-1],
            )
        )
    for name in ("0000.png", "0001.png"):
        one, two = (Image.open(folder / name) for folder in folders)
        assert np.abs(np.asarray(one).astype(int) - np.asarray(two).astype(int)).max() <= 1
        assert (
            json.loads(one.info["impasto"])["style_guidance"] == 2.0 and "Style guidance: 2" in one.info["parameters"]
        )


def test_bad_input(tiny_sd3, picture, tmp_path):
    io.save(with_lora(tiny_sd3), tmp_path / "style")
    own = str(tmp_path / "style")
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="style-guidance must be 0 or above, not"):
            generate(str(tiny_sd3), ["a cat"], styles=[own], sampling=Sampling(style_guidance=weight))
    with pytest.raises(UserError, match="give a --style that changes the denoiser"):
        generate(str(tiny_sd3), ["a cat"], sampling=Sampling(style_guidance=1.0))
    from impasto.guidance.style_aligned import Sharing, StyleAligned

    aligned = StyleAligned(picture, "a cat in ink style", Sharing())
    with pytest.raises(UserError, match="do not go together"):
        generate(str(tiny_sd3), ["a cat"], styles=[own], aligned=aligned, sampling=Sampling(style_guidance=1.0))
