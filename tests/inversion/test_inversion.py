"""Inversion against diffusers' schedulers and the formula (methods.md 4.1, E1, E24)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.inversion import ddim, flow, invert
from impasto.noise.schedule import RectifiedFlow, VariancePreserving

SD15 = VariancePreserving.scaled_linear(0.00085, 0.012)


class Model:
    """A fake family with a schedule and a prediction, `answer(z, lam)`; records the levels of its calls."""

    device, guided_by = "cpu", "negative"

    def __init__(self, schedule, answer, prediction="epsilon", sampler=None):
        self.schedule, self.answer, self.prediction, self.sampler = schedule, answer, prediction, sampler
        self.levels = []

    def predict(self, z, lam, cond):
        self.levels += lam.tolist()
        return self.answer(z, lam) + cond.get("shift", 0.0)

    def target(self, x, eps, lam):
        if isinstance(self.schedule, RectifiedFlow):
            return eps - x
        alpha, sigma = (w.view(-1, 1, 1, 1) for w in self.schedule.alpha_sigma(lam))
        return eps if self.prediction == "epsilon" else alpha * eps - sigma * x

    def sampling_levels(self, steps, size):
        return self.sampler


def picture(seed=0):
    return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ddim_of_constant_eps_is_exact():
    """E24, against the step in numpy, from z_T down to the image's level ac[0]."""
    z, eps = picture(), picture(1)
    found = invert(Model(SD15, lambda z, lam: eps), z, {}, 50)
    ac = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    s = np.sqrt(1 / ac - 1)
    back, t = found.noise.numpy(), [*range(981, 0, -20), 0]
    for now, then in pairwise(t):
        back = np.sqrt(ac[then] / ac[now]) * back + np.sqrt(ac[then]) * (s[then] - s[now]) * eps.numpy()
    assert abs(back - z.numpy()).max() < 1e-12


def test_ddim_of_constant_eps_matches_diffusers():
    """diffusers' alphas are float32."""
    z, eps = picture(), picture(1)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(50)
    model = Model(SD15, lambda z, lam: eps)
    back = invert(model, z, {}, 50).noise
    for t in scheduler.timesteps:
        back = scheduler.step(eps, t, back, return_dict=False)[0]
    assert (back - z).abs().max() < 1e-4
    timesteps = SD15.timestep(torch.tensor(model.levels, dtype=torch.float64))
    assert timesteps.round().tolist() == list(range(1, 982, 20)) == scheduler.timesteps.flip(0).tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_of_constant_velocity_matches_diffusers(shift):
    z, v = picture(), picture(1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(28)
    schedule = RectifiedFlow(1000.0)
    model = Model(schedule, lambda z, lam: v, sampler=schedule.log_snr(scheduler.timesteps.double()))
    found = invert(model, z, {}, 28)
    assert found.log_snr[0] == torch.inf and found.log_snr[-1] == -torch.inf and len(found.latents) == 29
    back = found.noise.float()
    for t in scheduler.timesteps:
        back = scheduler.step(v.float(), t, back, return_dict=False)[0]
    assert (back - z).abs().max() < 1e-5
    exact = found.noise
    for lam, lower in pairwise(found.log_snr.flip(0)):
        exact = flow.step(exact, v, lam, lower)
    assert (exact - z).abs().max() < 1e-12


def test_invert_v_model_matches_eps_model():
    def eps_of(z, lam):
        return torch.tanh(z) + 0.1 * lam.view(-1, 1, 1, 1)

    def v_of(z, lam):  # v = alpha eps - sigma x, x = (z - sigma eps) / alpha
        alpha, sigma = (w.view(-1, 1, 1, 1) for w in SD15.alpha_sigma(lam.double()))
        eps = eps_of(z, lam)
        return alpha * eps - sigma * (z - sigma * eps) / alpha

    by_eps = invert(Model(SD15, eps_of), picture(), {}, 20).latents
    by_v = invert(Model(SD15, v_of, "v_prediction"), picture(), {}, 20).latents
    assert (by_eps - by_v).abs().max() < 1e-5


def test_invert_predicts_at_target_level():
    model = Model(SD15, lambda z, lam: z)
    path = invert(model, picture(), {}, 10).log_snr
    assert model.levels == pytest.approx(path[1:].tolist(), abs=1e-6) and path[0].item() == SD15.range[1]


def test_invert_refined_approaches_exact_inverse():
    """The fixed point z' = step(z, eps(z', lam')) is the inverse of the sampler's step; iterations converge to it."""
    model, z = Model(SD15, lambda z, lam: torch.sin(z) + 0.2 * z), picture()
    errors = []
    for refine in (0, 2, 20):
        found = invert(model, z, {}, 20, refine=refine)
        back = found.noise
        for lam, lower in pairwise(found.log_snr.flip(0)):
            back = ddim.step(back, model.answer(back, lam), lam, lower)
        errors.append((back - z).abs().max().item())
    assert errors[0] > 0.05 > errors[1] > errors[2] and errors[2] < 1e-9


def test_invert_guidance_is_classifier_free():
    model, z = Model(SD15, lambda z, lam: torch.tanh(z)), picture()
    one, none, both = ({"shift": torch.full((1, 1, 1, 1), shift)} for shift in (0.5, -0.25, -0.25 + 2 * 0.75))
    guided = invert(model, z, one, 5, negative=none, guidance=2.0).noise
    by_hand = invert(model, z, both, 5).noise
    assert (guided - by_hand).abs().max() < 1e-12


def test_trajectory_at_nearest_level():
    found = invert(
        Model(RectifiedFlow(), lambda z, lam: z), picture(), {}, levels=torch.tensor([-1.0, 2.0, -torch.inf, 2])
    )
    assert found.log_snr.tolist() == [torch.inf, 2, -1, -torch.inf]
    for lam, which in ((torch.inf, 0), (1.9, 1), (-0.9, 2), (-torch.inf, 3)):
        assert (found.at(torch.tensor(lam)) == found.latents[which]).all()


@pytest.mark.parametrize(
    ("schedule", "given", "message"),
    [
        (SD15, {"steps": 0}, "1 to 999"),
        (SD15, {"steps": 1000}, "1 to 999"),
        (RectifiedFlow(), {"steps": 0}, "at least 1"),
        (SD15, {"levels": torch.tensor([-7.0])}, "cannot pass through"),
        (SD15, {"levels": torch.tensor([torch.nan])}, "cannot pass through"),
        (RectifiedFlow(), {"levels": torch.tensor([])}, "cannot pass through"),
    ],
    ids=str,
)
def test_invert_with_bad_levels_raises(schedule, given, message):
    with pytest.raises(UserError, match=message):
        invert(Model(schedule, lambda z, lam: z), picture(), {}, **given)


@pytest.mark.parametrize("steps", [4, 7])
def test_sampling_levels_match_pipeline(tiny_base, steps):
    """At two sizes, since FLUX's time shift depends on it."""
    family = load(str(tiny_base), device="cpu")
    pipe, prompt = family.pipeline(**{family.part: family.denoiser}), family.encode_prompt(["a cat"])
    timesteps = []
    hook = family.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: timesteps.append(kwargs["timestep"] if "timestep" in kwargs else args[1]),
        with_kwargs=True,
    )
    for size in (16, 32):
        timesteps.clear()
        call = family.call_arguments(prompt, None)
        pipe(**call, height=size, width=size, num_inference_steps=steps, guidance_scale=1.0, output_type="latent")
        expected = family.schedule.log_snr(torch.stack([t.double().flatten()[0] for t in timesteps]))
        latents = family.encode_image(torch.zeros(1, 3, size, size))
        assert torch.allclose(family.sampling_levels(steps, tuple(latents.shape[-2:])), expected, atol=1e-3)
    hook.remove()


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_invert_round_trip_error_is_small(name, request):
    """Tiny random networks: refining reduces the error (30 times for the U-Net, 200,000 for the flow)."""
    family = load(str(request.getfixturevalue(f"tiny_{name}")), device="cpu")
    cond = family.encode_prompt(["a cat"])
    z = family.encode_image(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    kind, errors = ddim if isinstance(family.schedule, VariancePreserving) else flow, []
    for refine in (0, 6):
        found = invert(family, z, cond, 24, refine=refine)
        assert found.latents.dtype == torch.float32 and found.latents.shape == (25, *z.shape[1:])
        back, path = found.noise, found.log_snr.flip(0)
        with torch.no_grad():
            for lam, lower in pairwise(path):
                prediction = family.predict(back, lam.float()[None], cond)
                back = kind.step(back, kind.direction(family, back, lam.float()[None], prediction), lam, lower)
        errors.append(((back - z).norm() / found.noise.norm()).item())
    assert errors[1] < 0.25 * errors[0] and errors[1] < 0.25
    assert (found.noise - z).norm() > 0.3 * z.norm()
