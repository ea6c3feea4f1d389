"""Composed prompts under guidance (methods.md E22), on every family's own pipeline and on our sampler."""

from contextlib import nullcontext

import pytest
import torch

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.guidance.composed import composing, texts
from impasto.inversion import kind_of, sample

FIRST, SECOND = ["a cat", "a star"], ["a cat in neon style", "a rocket in pixel art style"]


@pytest.fixture
def family(tiny_base):
    return load(str(tiny_base), device="cpu", precision="fp32")


def guided(family):
    return family.guided_by == "negative"


def by_pipeline(family, context=None, prompts=FIRST, guidance=2.5):
    """Latents of two images in three steps."""
    pipe = family.pipeline(**{family.part: family.denoiser})
    negative = family.encode_prompt([""] * 2) if guided(family) else None
    call = family.call_arguments(family.encode_prompt(prompts), negative)
    kind = {"num_inference_steps": 3, "guidance_scale": guidance, "height": 16, "width": 16, "output_type": "latent"}
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with context or nullcontext():
        return pipe(**call, **kind, generator=generator).images


def composed(family, *weights, prompts=(SECOND,)):
    others = [texts(family, family.encode_prompt(list(rows))) for rows in prompts]
    return composing(family.denoiser, others, weights, guided(family))


def test_beta_0_and_1_are_guidance_by_one_prompt(family):
    plain = {name: by_pipeline(family, prompts=prompts) for name, prompts in {"1": FIRST, "2": SECOND}.items()}
    assert torch.equal(by_pipeline(family, composed(family, 1, 0)), plain["1"])
    assert torch.equal(by_pipeline(family, composed(family, 0, 1)), plain["2"])
    assert not torch.equal(plain["1"], plain["2"])


def test_equal_prompts_do_not_depend_on_beta(family):
    plain = by_pipeline(family)
    for beta in (0.3, 0.8):
        found = by_pipeline(family, composed(family, 1 - beta, beta, prompts=(FIRST,)))
        assert (found - plain).abs().max() < 1e-4 * plain.std()


def test_prediction_is_equation_12(family):
    """One call of the denoiser, against predictions taken one by one; several prompts likewise."""
    z = family.encode_image(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    conds = [family.encode_prompt(list(prompts)) for prompts in (FIRST, SECOND, FIRST[::-1])]
    empty, weights, lam = family.encode_prompt([""] * 2), (0.5, 0.3, 0.2), torch.full((2,), -1.0)
    with torch.no_grad():
        e_0, *e = [family.predict(z, lam, cond) for cond in (empty, *conds)]
        mixed = sum(w * prediction for w, prediction in zip(weights, e, strict=True))
        others = [texts(family, cond) for cond in conds[1:]]
        with composing(family.denoiser, others, weights, halves=True):
            both = {name: torch.cat([empty[name], conds[0][name]]) for name in empty}
            found = family.predict(torch.cat([z, z]), torch.cat([lam, lam]), both).chunk(2)
        with composing(family.denoiser, others, weights, halves=False):
            alone = family.predict(z, lam, conds[0])
    assert torch.allclose(found[0], e_0, atol=1e-5) and torch.allclose(found[1], mixed, atol=1e-5)
    assert torch.allclose(alone, mixed, atol=1e-5)
    assert (mixed - e[0]).abs().max() > 1e-3


def test_our_sampler_composes_as_the_predictions_do(tiny_sd15):
    """e = e_0 + w (1 - beta) (e_1 - e_0) + w beta (e_2 - e_0), a step from the terminal level."""
    family = load(str(tiny_sd15), device="cpu", precision="fp32")
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    one, two, empty = (family.encode_prompt([prompt]) for prompt in ("a cat", "a star in neon style", ""))
    levels = kind_of(family).levels(family, 1, (4, 4))
    kind = {"negative": empty, "guidance": 2.5}
    ends = [sample(family, z, levels, cond, **kind) for cond in (one, two)]
    with composing(family.denoiser, [texts(family, two)], (0.7, 0.3), halves=True):
        found = sample(family, z, levels, one, **kind)
    assert torch.allclose(found, 0.7 * ends[0] + 0.3 * ends[1], atol=1e-4 * found.std())


def test_denoiser_is_itself_afterwards(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    before = by_pipeline(family)
    by_pipeline(family, composed(family, 0.5, 0.5))
    assert torch.equal(by_pipeline(family), before) and "forward" not in vars(family.denoiser)


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1.2, -0.2), "from 0 to 1, not 1.2"), ((0.5, 0.6), "add up to 1, not 1.1"), ((1,), "2 prompts but 1 weights")],
)
def test_bad_weights_raise(weights, message, tiny_sd15):
    family = load(str(tiny_sd15), device="cpu", precision="fp32")
    with pytest.raises(UserError, match=message), composed(family, *weights):
        pass
