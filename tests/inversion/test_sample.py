"""Deterministic sampling from a terminal level, against diffusers' pipelines and the inversion itself."""

import pytest
import torch
from test_inversion import SD15, Model, picture

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.inversion import ddim, invert, kind_of, sample
from impasto.noise.schedule import RectifiedFlow, VariancePreserving

STEPS = 6


def noise(family, rows=1):
    shape = family.encode_image(torch.zeros(1, 3, 16, 16)).shape[1:]
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(3))


def conditions(family):
    pair = family.encode_prompt(["a cat", "a rocket in neon style"])
    return pair, family.encode_prompt([""])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sample_is_the_pipeline_s_ddim_or_euler(tiny_base, guidance):
    """Two rows with prompts of their own from one noise; latents to 1e-4 of their spread."""
    family = load(str(tiny_base), device="cpu")
    pair, empty = conditions(family)
    levels = kind_of(family).levels(family, STEPS, (noise(family).shape[-2], noise(family).shape[-1]))
    found = sample(family, noise(family), levels, pair, negative=empty, guidance=guidance)

    pipe = family.pipeline(**{family.part: family.denoiser})
    if isinstance(family.schedule, VariancePreserving):
        pipe.scheduler = ddim.scheduler(pipe.scheduler.config)
    negative = {name: rows.expand(2, *rows.shape[1:]) for name, rows in empty.items()}
    guided = guidance > 1 and family.guided_by == "negative"
    call = family.call_arguments(pair, negative if guided else None)
    latents = family.pack(noise(family).expand(2, -1, -1, -1))
    truth = pipe(
        **call, latents=latents, num_inference_steps=STEPS, guidance_scale=guidance, height=16, width=16,
        output_type="latent",
    ).images  # fmt: skip
    truth = family.unpack(truth, (16, 16))
    assert (found - truth).abs().max() < 1e-4 * truth.std()
    assert (found[0] - found[1]).abs().max() > 1e-3 * truth.std() or family.guided_by == "nothing"


def test_sample_rows_do_not_depend_on_the_batch(tiny_base):
    family = load(str(tiny_base), device="cpu")
    pair, empty = conditions(family)
    z = noise(family, 2)
    levels = kind_of(family).levels(family, STEPS, (z.shape[-2], z.shape[-1]))
    whole, single = (sample(family, z, levels, pair, negative=empty, guidance=3.0, batch=n) for n in (None, 1))
    assert (whole - single).abs().max() < 1e-4 * whole.std()
    alone = sample(family, z[1:], levels, {k: v[1:] for k, v in pair.items()}, negative=empty, guidance=3.0)
    assert torch.equal(single[1:], alone)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("until", [None, 0.0])
def test_sample_with_constant_prediction_undoes_the_inversion(kind, until):
    """E24, to 1e-12 in float64, from the last level and from one on the way."""
    eps, schedule = picture(1), SD15 if kind == "eps" else RectifiedFlow()
    sampler = torch.linspace(-4, 4, 9, dtype=torch.float64)
    model = Model(schedule, lambda z, lam: eps, sampler=sampler)
    found = invert(model, picture(), {}, 50, until=until)
    assert until is None or found.log_snr[-1] >= until > found.log_snr[-1] - 1.1
    assert (found.noise - picture()).abs().max() > 0.1
    assert (sample(model, found.noise, found.log_snr, {}) - picture()).abs().max() < 1e-12


def test_sample_undoes_a_refined_inversion_more_exactly():
    model, errors = Model(SD15, lambda z, lam: torch.sin(z) + 0.2 * z), []
    for refine in (0, 2, 20):
        found = invert(model, picture(), {}, 20, refine=refine)
        errors.append((sample(model, found.noise, found.log_snr, {}) - picture()).abs().max().item())
    assert errors[0] > 0.05 > errors[1] > errors[2] and errors[2] < 1e-9


def test_sample_starts_at_the_terminal_level():
    """The calls of the model run from there to the cleanest level but the image's own."""
    model = Model(SD15, lambda z, lam: z)
    found = invert(model, picture(), {}, 50, until=-1.0)
    model.levels.clear()
    sample(model, found.noise, found.log_snr, {})
    assert model.levels == pytest.approx(found.log_snr[1:].flip(0).tolist(), abs=1e-6)


def test_guidance_without_a_negative_condition_raises():
    with pytest.raises(ValueError, match="negative prompt"):
        sample(Model(SD15, lambda z, lam: z), picture(), torch.tensor([-5.0, 7.0]), {}, guidance=2.5)


def test_terminal_level_before_the_first_step_raises():
    with pytest.raises(UserError, match="has no step"):
        invert(Model(SD15, lambda z, lam: z), picture(), {}, 10, until=7.06)
