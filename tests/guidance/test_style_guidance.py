"""Style guidance: the formula, for every family's own pipeline, against predictions taken one by one."""

import json
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add, disabled
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.generation import generate, generate_folder
from impasto.guidance import style_guidance
from impasto.guidance.config import StyleAligned
from impasto.guidance.style_guidance import Weights, guiding
from impasto.sampling.config import GenerateConfig
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles import load as io
from impasto.styles import save


def with_lora(base):
    """The family with a LoRA that does something."""
    family = load(str(base), device="cpu", precision="fp32")
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in add(family, LoRA(rank=4, alpha=6.0, targets=("attention",)), 0).items():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=shared))
    return family


@pytest.fixture
def style(tiny_base, tmp_path):
    save.save(with_lora(tiny_base), tmp_path / "style")
    return tmp_path / "style"


def drawn(base, style=None, **sampling):
    styles = [str(style)] if style else []
    guidance = 3.0 if load(str(base), device="cpu").guided_by != "nothing" else None
    settings = Sampling(steps=3, **{"guidance": guidance} | sampling)
    images, info = zip(
        *generate(str(base), ["a cat", "a rocket"], styles=styles, seed=3, sampling=settings), strict=True
    )
    return np.stack([np.asarray(image) for image in images]).astype(int), info[0]


def expected(weights: Weights, styled, base, halves: bool):
    """The formula, from predictions taken one by one."""
    if not halves:
        return styled + weights.style * (styled - base)
    (styled_n, styled_y), (base_n, base_y) = styled.chunk(2), base.chunk(2)
    v = styled_y + (weights.guidance - 1) * (styled_y - styled_n)
    return v + weights.style * (styled_y - base_y) + weights.base * (base_y - base_n)


CASES = [Weights(3.0, 1.3), Weights(3.0, 2.0, 2.0), Weights(1.0, 3.0, 2.0), Weights(3.0, 0.0, 1.5)]


@pytest.mark.parametrize("batched", [True, False])
@torch.no_grad()
def test_guiding_every_family_returns_the_formula(tiny_base, style, batched, monkeypatch):
    """What the sampler gets in each step, against base and style asked alone with the very same inputs."""
    if not batched:
        monkeypatch.setattr(style_guidance, "is_plain_lora", lambda denoiser: False)
    family = load(str(tiny_base), device="cpu", precision="fp32")
    pipe = family.pipeline()
    denoiser = getattr(pipe, family.part)
    io.load_style(pipe, style, 1.0)
    cond, none = (family.encode_prompt([text], pipe=pipe) for text in ("a cat", "ink drawing"))
    halves = family.guided_by == "negative"
    call = family.call_arguments(cond, none if halves else None)
    for weights in CASES if halves else [Weights(1.0, 1.3)]:
        plain = denoiser.forward
        with guiding(denoiser, weights, halves):
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
            wanted = expected(weights, styled, base, halves)
            for found in out.chunk(2) if halves else (out,):  # both halves: the pipeline's own scale leaves it
                assert (found - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
            assert (styled - base).abs().max() > 1e-3


def test_terms_of_coefficient_0_are_not_computed(tiny_sd3, tmp_path):
    calls = {}
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    pipe = family.pipeline()
    save.save(with_lora(tiny_sd3), tmp_path)
    io.load_style(pipe, tmp_path, 1.0)
    denoiser = pipe.transformer
    plain = denoiser.forward
    for weights in (Weights(3.0, 2.0), Weights(3.0, 2.0, 2.0), Weights(1.0, 3.0, 3.0), Weights(1.0, 2.0)):
        rows = []

        def counting(*args, rows=rows, **kwargs):
            rows.append(len(kwargs["hidden_states"]))
            return plain(*args, **kwargs)

        denoiser.forward = counting
        settings = Sampling(1, weights.guidance, "ink", style_guidance=weights.style, base_guidance=weights.base)
        jobs, encode = [("a cat", 0)], encoder(family, pipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(sample(family, pipe, jobs, encode, settings.on(family), {}))
        denoiser.forward = plain
        calls[weights] = rows
    # S(y), S(n), B(y) in one call; of (3, 2, 2) B(y) cancels; of (1, 3, 3) S(n) too; S(y), B(y)
    assert list(calls.values()) == [[3], [3], [2], [2]]


def test_0_and_no_negative_is_plain_diffusers_to_the_bit(tiny_base, style):
    """`--style x:1 --style-guidance 0 --negative ""`: the pipeline's own call with `load_lora_weights`."""
    family = load(str(tiny_base), device="cpu", precision="fp32")
    pipe = family.pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(style))
    guidance = {} if family.guided_by == "nothing" else {"guidance_scale": 3.0}
    cond, none = (family.encode_prompt([text], pipe=pipe) for text in ("a cat", ""))
    call = family.call_arguments(cond, none if family.guided_by == "negative" else None)
    generator = torch.Generator().manual_seed(3)
    image = pipe(**call, num_inference_steps=3, height=16, width=16, generator=generator, **guidance).images[0]
    settings = Sampling(3, guidance.get("guidance_scale"), "", 16, style_guidance=0.0, base_guidance=0.0)
    (ours, _), *_ = generate(str(tiny_base), ["a cat"], styles=[f"{style}:1"], seed=3, sampling=settings)
    assert np.array_equal(np.asarray(ours), np.asarray(image))


def test_more_style_guidance_is_further_from_the_base(tiny_base, style):
    base, info = drawn(tiny_base)
    assert "style_guidance" not in info
    plain, info = drawn(tiny_base, f"{style}:0.3", style_guidance=0.0)
    assert info["style_guidance"] == 0.0
    some, much = (np.abs(drawn(tiny_base, f"{style}:0.3", style_guidance=s)[0] - base).mean() for s in (0.5, 2.0))
    assert 0 < np.abs(plain - base).mean() < some < much


def test_reward_guidance_is_base_and_style_guidance(tiny_sd3):
    """Direct Consistency Optimization's sampling with both weights w: B(n) + w [S(y) - B(n)], without guidance."""
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    terms = Sampling(guidance=1.0, style_guidance=3.0, base_guidance=3.0).on(family).weights(family).terms
    assert terms == {(True, "prompt"): 4.0, (False, "negative"): -3.0}


def test_the_picture_tells_it_and_the_batch_does_not_matter(tiny_sd3, tmp_path):
    save.save(with_lora(tiny_sd3), tmp_path / "style")
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


def test_bad_input(tiny_sd3, tiny_flux, picture, tmp_path):
    save.save(with_lora(tiny_sd3), tmp_path / "style")
    own = str(tmp_path / "style")
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="style-guidance must be a finite number from 0 on, not"):
            generate(str(tiny_sd3), ["a cat"], styles=[own], sampling=Sampling(style_guidance=weight))
    with pytest.raises(UserError, match="base-guidance must be a finite number"):
        generate(str(tiny_sd3), ["a cat"], styles=[own], sampling=Sampling(base_guidance=-1.0))
    with pytest.raises(UserError, match="give a --style that changes the denoiser"):
        generate(str(tiny_sd3), ["a cat"], sampling=Sampling(style_guidance=1.0))
    with pytest.raises(UserError, match="base-guidance needs a negative prompt"):
        generate(str(tiny_flux), ["a cat"], sampling=Sampling(base_guidance=1.0))
    aligned = StyleAligned(picture, "a cat in ink style")
    with pytest.raises(UserError, match="do not go together"):
        generate(str(tiny_sd3), ["a cat"], styles=[own], guidances=[aligned], sampling=Sampling(style_guidance=1.0))


def test_a_merged_style_cannot_be_compared_with_the_base(tiny_sd3, tmp_path):
    pipe = load(str(tiny_sd3), device="cpu", precision="fp32").pipeline()
    save.save(with_lora(tiny_sd3), tmp_path)
    io.load_style(pipe, tmp_path, 1.0)
    style_guidance.check_switchable(pipe.transformer)
    pipe.fuse_lora()
    with pytest.raises(UserError, match="merged into its weights: unfuse it"):
        style_guidance.check_switchable(pipe.transformer)
