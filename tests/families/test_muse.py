"""Muse: tokens, sampling, adapters and training on a tiny random folder; aMUSEd's published sizes without weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AmusedPipeline, UVit2DModel

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.families.muse import MusePipeline, draw_tokens
from impasto.noise.schedule import MaskRatio


def family_of(folder, **changes):
    return load(str(folder), device="cpu", precision="fp32", **changes)


def draw(pipe, prompts, seeds, **call):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    given = {"height": 16, "width": 16, "num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    return pipe(prompts, generator=generators, **(given | call)).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pipeline_draws_the_tokens_of_diffusers(tiny_muse, guidance, monkeypatch):
    """Its own pipeline, with the random numbers of ours."""
    monkeypatch.setattr(
        torch, "multinomial", lambda p, n, generator: draw_tokens(p, torch.rand(len(p), generator=generator))[:, None]
    )
    theirs = AmusedPipeline.from_pretrained(tiny_muse)
    theirs.set_progress_bar_config(disable=True)
    ours = MusePipeline(**theirs.components)
    for seed in range(3):
        expected = theirs(
            "a rocket in ink style",
            height=16,
            width=16,
            num_inference_steps=5,
            guidance_scale=guidance,
            temperature=(2, 0),
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="latent",
        ).images
        found = draw(ours, ["a rocket in ink style"], [seed], guidance_scale=guidance)
        assert torch.equal(found[:, 0], expected) and found.max() < 32
    assert len(found.unique()) > 8


def test_draw_tokens_have_their_probabilities():
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    found = (
        draw_tokens(p.expand(20_000, 6), torch.rand(20_000, generator=torch.Generator().manual_seed(0))).bincount(
            minlength=6
        )
        / 20_000
    )
    torch.testing.assert_close(found, p, atol=0.012, rtol=0)
    assert found[p == 0].sum() == 0


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_draw_tokens_temperature_divides_the_logits(temperature):
    logits = torch.tensor([0.0, 2.0, -3.0, 1.0, 1.5, -80.0])
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    found = draw_tokens(logits.softmax(-1).expand(20_000, 6), u, temperature).bincount(minlength=6) / 20_000
    expected = (logits / temperature).softmax(-1) if temperature else torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(found, expected, atol=0.012, rtol=0)


def test_pipeline_image_does_not_depend_on_its_batch(tiny_muse):
    pipe = family_of(tiny_muse).pipeline()
    prompts = ["a cat", "a rocket", "a star"]
    together = draw(pipe, prompts, [4, 5, 6])
    for i, prompt in enumerate(prompts):
        assert torch.equal(together[i : i + 1], draw(pipe, [prompt], [4 + i]))
    assert not torch.equal(draw(pipe, ["a cat"], [4]), draw(pipe, ["a cat"], [5]))


def test_tokens_of_an_image_decode_to_the_vq_models_output(tiny_muse):
    family = family_of(tiny_muse)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = family.encode_image(pixels)
    assert ids.shape == (2, 1, 8, 8) and ids.dtype == torch.int32 and 1 < len(ids.unique()) <= 32
    expected = family.vae(pixels / 2 + 0.5).sample * 2 - 1
    torch.testing.assert_close(family.decode(ids), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="size must be a multiple of 2"):
        family.encode_image(pixels[..., :15])


def test_mask_ratio_masks_that_share_of_the_tokens():
    schedule, g = MaskRatio(32), torch.Generator().manual_seed(0)
    x = torch.randint(32, (4, 1, 8, 8), generator=g)
    m = torch.tensor([0.001, 0.25, 0.5, 1.0])
    z = schedule.add_noise(x, torch.randn(x.shape, generator=g), schedule.log_snr(m))
    assert (z == 32).flatten(1).sum(1).tolist() == [1, 16, 32, 64]
    assert torch.equal(z[z != 32], x[z != 32])
    lam = torch.tensor([-9.0, 0.0, 3.0])
    torch.testing.assert_close(schedule.log_snr(schedule.timestep(lam)), lam)


def test_sampling_levels_are_the_mask_ratios_of_the_calls(tiny_muse):
    family = family_of(tiny_muse)
    pipe = family.pipeline()
    seen = []

    def count(module, args, kwargs):
        seen.append(float((args[0] == 39).float().mean()))

    pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    draw(pipe, ["a cat"], [0], guidance_scale=1.0)
    levels = family.sampling_levels(5, (8, 8))
    np.testing.assert_allclose(torch.sigmoid(-levels / 2).numpy(), seen, atol=1e-6)


@pytest.mark.parametrize(
    "file, key, value, message",
    [
        ("vqvae", "num_vq_embeddings", 64, "64 codes and the transformer 32"),
        ("scheduler", "mask_token_id", None, "has no mask token"),
        ("scheduler", "mask_token_id", 40, "from 32 to 39, not 40"),
    ],
)
def test_folder_of_other_codes_or_without_mask_token_is_refused(tiny_muse, tmp_path, file, key, value, message):
    folder = shutil.copytree(tiny_muse, tmp_path / "base")
    name = folder / file / ("scheduler_config.json" if file == "scheduler" else "config.json")
    name.write_text(json.dumps(json.loads(name.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message):
        family_of(folder)


AMUSED = {  # published config.json of the transformers; parameters as their cards state, 603M and 608M
    "amused-256": ({"downsample": False, "upsample": False}, 603_000_000),
    "amused-512": ({"downsample": True, "upsample": True}, 608_000_000),
}


@pytest.mark.parametrize("name", AMUSED)
def test_published_sizes_have_their_parameter_counts(name):
    changes, published = AMUSED[name]
    with torch.device("meta"):
        model = UVit2DModel(**changes)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=0.01)
