"""Two adapters in one image: the rule, its ends to the bit, every kind of prediction, beside other guidances."""

import numpy as np
import pytest
import torch

from impasto.adapters.base import adapter_of
from impasto.adapters.config import KVBottleneck, LoRA, StyleDrop
from impasto.adapters.lora import disabled
from impasto.adapters.text_encoder import FROZEN
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.generation import generate
from impasto.guidance.config import StyleSemantics, TwoAdapters
from impasto.guidance.style_guidance import prediction
from impasto.guidance.two_adapters import CONTENT, content_alone, mixing
from impasto.sampling.sample import Sampling
from impasto.styles import save
from impasto.styles.load import load_inactive, load_style, tuner_layers


def save_style(base, folder, settings, seed):
    """A style of random weights that does something."""
    family = load(str(base), device="cpu", precision="fp32")
    shared = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter_of(settings).attach(family, settings, seed).values():
            p.add_(0.3 * torch.randn(p.shape, generator=shared))
    folder.mkdir(exist_ok=True)
    save.save(family, folder, FROZEN, adapter_of(settings))
    return folder


KINDS = {
    "muse": (StyleDrop(), LoRA(rank=4)),
    "sd15": (LoRA(rank=4), LoRA(rank=2)),
    "flux": (LoRA(rank=4), KVBottleneck()),
}


@pytest.fixture(params=list(KINDS))
def pair(request, tmp_path):
    """(base, style, content)."""
    base = request.getfixturevalue(f"tiny_{request.param}")
    style, content = KINDS[request.param]
    return base, save_style(base, tmp_path / "style", style, 1), save_style(base, tmp_path / "content", content, 2)


def images(base, style, *guidances, **sampling):
    """uint8 images of two prompts as int, and the Info of the first."""
    settings = Sampling(steps=3, **{"style_guidance": 0.0, "negative": "", **sampling})
    made = generate(
        str(base), ("a cat", "a rocket"), styles=[f"{style}:1"], seed=3, sampling=settings, guidances=guidances
    )
    found, info = zip(*made, strict=True)
    return np.stack([np.asarray(image) for image in found]).astype(int), info[0]


def test_ends_are_each_adapter_alone_to_the_bit(pair):
    base, style, content = pair
    (own, _), (other, _) = images(base, style), images(base, content)
    ends = {g: images(base, style, TwoAdapters(str(content), g)) for g in (0.0, 0.5, 1.0)}
    assert np.array_equal(ends[0.0][0], own) and np.array_equal(ends[1.0][0], other)
    between, info = ends[0.5]
    assert (between != own).any() and (between != other).any()
    assert info["content_share"] == 0.5 and info["content"]["path"] == str(content)


@torch.no_grad()
def test_prediction_is_the_mixture_and_the_base_stays(pair):
    base, style, content = pair
    family = load(str(base), device="cpu", precision="fp32")
    pipe = family.pipeline()
    denoiser = getattr(pipe, family.part)
    g = torch.Generator().manual_seed(0)
    z = torch.randint(32, (1, 1, 8, 8), generator=g) if family.schedule.masked else torch.randn(1, 4, 4, 4, generator=g)
    cond = family.encode_prompt(["a cat"], pipe=pipe)
    family.denoiser = denoiser

    def predict():
        return prediction(family.predict(z, torch.tensor([-1.0]), cond))

    plain = predict()
    load_style(pipe, style)
    own = predict()
    load_inactive(pipe, content, 1.0, CONTENT)
    assert torch.equal(predict(), own) and all(CONTENT not in layer.active_adapters for layer in tuner_layers(pipe))
    with content_alone(denoiser):
        other = predict()
    with mixing(denoiser, 0.3):
        torch.testing.assert_close(predict(), 0.7 * own + 0.3 * other)
        with disabled(denoiser):
            torch.testing.assert_close(predict(), plain)
    assert torch.equal(predict(), own) and (own - other).abs().max() > 1e-3 < (other - plain).abs().max()


@pytest.mark.parametrize("kind", ["muse", "sd15"])
def test_rules_of_guidance_hold_for_the_mixture(kind, request, tmp_path):
    """With two copies of one adapter the mixture is that adapter, whatever the rule."""
    base = request.getfixturevalue(f"tiny_{kind}")
    style = save_style(base, tmp_path / "style", LoRA(rank=4), 1)
    for guidances, sampling in (((StyleSemantics(2.0, 1.0, 3.0),), {}), ((), {"style_guidance": 2.0, "guidance": 3.0})):
        own, _ = images(base, style, *guidances, **sampling)
        mixed, _ = images(base, style, TwoAdapters(str(style), 0.4), *guidances, **sampling)
        assert (abs(mixed - own) > 1).mean() < 0.01


def test_bad_input_is_refused(tiny_sd15, tiny_muse, tmp_path):
    style = save_style(tiny_sd15, tmp_path / "style", LoRA(rank=2), 1)
    with pytest.raises(UserError, match="content-share must be from 0 to 1"):
        TwoAdapters(str(style), 1.5)
    with pytest.raises(UserError, match="content-share goes with --content"):
        images(tiny_sd15, style, TwoAdapters(None, 0.7))
    with pytest.raises(UserError, match="goes beside a --style"):
        generate(str(tiny_sd15), ["a cat"], guidances=[TwoAdapters(str(style))])
    other = save_style(tiny_muse, tmp_path / "other", StyleDrop(), 1)
    with pytest.raises(UserError):
        images(tiny_sd15, style, TwoAdapters(str(other)))
