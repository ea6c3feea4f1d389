"""DCO: its value and gradient at the start (methods.md E19), the formula by hand, and what it meets in a run."""

import json
import math
from dataclasses import replace

import pytest
import torch
from fakes import prepare
from PIL import Image
from safetensors.torch import load_file

from impasto.adapters import lora
from impasto.adapters.config import LoRA
from impasto.adapters.text_encoder import build_text
from impasto.bases.loader import load
from impasto.config import change, resolve
from impasto.data import references
from impasto.data.draws import Draws
from impasto.errors import UserError
from impasto.noise.laws import noise_law
from impasto.objectives.base import build_objective
from impasto.training.train import train

CAPTION = "a rocket in pixel art style"
KINDS = [(1.0, "mean"), (100.0, "mean"), (1000.0, "mean"), (1.0, "sum"), (3.0, "sum")]


def config_of(base, picture, out, **changes):
    settings = {"rank": 4, "preview": False, "tensorboard": False, "steps": 3, "lr": 1e-2, "objective": "dco"}
    files = {"image": [str(picture)], "caption": [CAPTION], "out": str(out)}
    return resolve("style-friendly", str(base), **settings | files | changes)


@pytest.fixture(scope="module")
def tiny(tiny_sd3, picture):
    """(family with an adapter of rank 4 on it, its parameters, a batch of three, lam)."""
    config = config_of(tiny_sd3, picture, "unused")
    family = load(config.base, device="cpu")
    prepared = prepare(family, [(references.read(picture), CAPTION)], 16)
    parameters = lora.add(family, LoRA(rank=4, alpha=None, targets=config.adapter.targets), 0)
    batch, lam, _ = Draws(config, noise_law(config), prepared)(1, 0)
    return family, parameters, batch, lam


def of(family, beta=1.0, reduction="mean"):
    return build_objective(resolve(objective="dco", dco_beta=beta, dco_reduction=reduction).objective, family)


def gradients(loss, parameters):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters.values(), allow_unused=True) if g is not None]
    )


def set_b(parameters, size):
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(size * torch.randn(p.shape, generator=shared))


@pytest.mark.parametrize(("beta", "reduction"), KINDS)
def test_at_the_start(tiny, beta, reduction):
    """E19: loss log 2 exactly; gradient beta / 2 times the plain one's, of the sum C h w times that again."""
    family, parameters, batch, lam = tiny
    set_b(parameters, 0.0)
    plain = build_objective(resolve().objective, family)(family, batch, lam, [])["loss"]
    parts = of(family, beta, reduction)(family, batch, lam, [])
    assert parts["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert parts["mse"] == parts["base_mse"] == plain and parts["better"] == 0 and parts["pull"] == 0.5
    times = beta / 2 * (batch.x[0].numel() if reduction == "sum" else 1)
    one, two = gradients(plain, parameters), gradients(parts["loss"], parameters)
    assert one.norm() > 1e-4
    torch.testing.assert_close(two, times * one, rtol=1e-4, atol=1e-5 * times * one.abs().max().item())


@pytest.mark.parametrize(("beta", "reduction"), KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula_by_hand(tiny, beta, reduction, masked):
    """In float64, from predictions with the adapter on and off; only the adapter's own part has a gradient."""
    family, parameters, batch, lam = tiny
    set_b(parameters, 0.2)
    mask = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 if masked else None
    batch = replace(batch, mask=mask)
    t = torch.sigmoid(-lam / 2).view(-1, 1, 1, 1)
    z = (1 - t) * batch.x + t * batch.eps
    with torch.no_grad():
        on = family.predict(z, lam, batch.cond).double()
        family.denoiser.disable_adapters()
        off = family.predict(z, lam, batch.cond).double()
        family.denoiser.enable_adapters()
    assert not torch.allclose(on, off, atol=1e-3)
    loss = better = pull = 0.0
    for i in range(3):
        errors = [((p[i] - (batch.eps - batch.x)[i]) ** 2 * (1 if mask is None else mask[i])) for p in (on, off)]
        l_th, l_ph = (error.mean() if reduction == "mean" else error.sum() for error in errors)
        loss += -torch.log(1 / (1 + torch.exp(beta * (l_th - l_ph)))).clamp(min=-700).item() / 3
        better += (l_th < l_ph).item() / 3
        pull += (1 / (1 + torch.exp(-beta * (l_th - l_ph)))).item() / 3
    parts = of(family, beta, reduction)(family, batch, lam, [])
    if math.isfinite(loss):
        assert parts["loss"].item() == pytest.approx(loss, rel=2e-4, abs=1e-5)
    assert parts["better"].item() == pytest.approx(better) and parts["pull"].item() == pytest.approx(pull, abs=1e-3)
    assert [name for name, part in parts.items() if part.requires_grad] == ["loss"]
    with torch.no_grad():
        assert torch.equal(family.predict(z, lam, batch.cond).double(), on)  # the adapter is on again


def test_what_is_learnt_pulls_less(tiny):
    """The gradient of an item that is better by m is beta sigmoid(-beta m) of its plain one: here that of one item."""
    family, parameters, batch, lam = tiny
    set_b(parameters, 0.2)
    one = replace(batch, x=batch.x[:1], eps=batch.eps[:1], cond={k: v[:1] for k, v in batch.cond.items()})
    plain = build_objective(resolve().objective, family)(family, one, lam[:1], [])["loss"]
    parts = of(family, 3.0)(family, one, lam[:1], [])
    torch.testing.assert_close(
        gradients(parts["loss"], parameters), 3 * parts["pull"] * gradients(plain, parameters), rtol=1e-3, atol=1e-6
    )
    assert abs(parts["pull"].item() - 0.5) > 1e-4


@pytest.mark.filterwarnings("ignore:--text lora trains the CLIP")
def test_the_reference_reads_the_caption_as_the_base_does(tiny_sd3, picture, tmp_path):
    """With a LoRA on the text encoders: phi gets the base's own condition, theta that of now, with gradient."""
    config = config_of(tiny_sd3, picture, tmp_path, text_encoder_lora=True)
    family = load(config.base, device="cpu")
    prepared = prepare(family, [(references.read(picture), CAPTION)], 16)
    batch, lam, _ = Draws(config, noise_law(config), prepared)(1, 0)
    batch = replace(batch, prompts=(CAPTION,) * 3)
    t = torch.sigmoid(-lam / 2).view(-1, 1, 1, 1)
    z, target = (1 - t) * batch.x + t * batch.eps, batch.eps - batch.x
    with torch.no_grad():
        base = (family.predict(z, lam, batch.cond) - target).square().mean()
    text = build_text(config)
    own = lora.add(family, LoRA(rank=4), 0) | (read := text.attach(family))
    set_b(own, 0.5)
    parts = build_objective(config.objective, family)(family, text.reencode(batch), lam, [])
    assert parts["base_mse"].item() == pytest.approx(base.item(), rel=1e-5)
    assert abs(parts["mse"].item() - base.item()) > 1e-3 and gradients(parts["loss"], read).norm() > 0


@pytest.mark.filterwarnings("ignore:--text lora trains the CLIP")
def test_whole_runs(tiny_sd15, tiny_sd3, picture, tmp_path):
    """With EMA, a loss mask, the prior, text encoders: the first loss is log 2, the parts are in metrics.jsonl."""
    Image.linear_gradient("L").resize((40, 40)).save(tmp_path / "a.mask.png")
    Image.open(picture).save(tmp_path / "a.png")
    masked = {"image": [str(tmp_path / "a.png")], "mask": "files", "ema": 0.5, "dco_beta": 100.0}
    prior = {"prior_weight": 0.5, "prior_prompt": ["a cat"], "dco_reduction": "sum"}
    for base, changes in ((tiny_sd15, masked), (tiny_sd3, prior), (tiny_sd15, {"text_encoder_lora": True})):
        config = config_of(base, picture, tmp_path / f"run{len(changes)}", **changes)
        train(config)
        rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
        fit = "fit" if "prior_weight" in changes else "loss"
        assert rows[0][fit] == pytest.approx(math.log(2), abs=1e-5) and rows[-1][fit] != rows[0][fit]
        if fit == "loss":
            assert {"mse", "base_mse", "better", "pull"} <= rows[0].keys()
        assert load_file(config.out / "pytorch_lora_weights.safetensors")


def test_a_quantised_base_is_its_own_reference(tiny_sd3, picture, tmp_path):
    """Adapters off is the base as it is loaded, in its fewer bits: the first loss is log 2 there too."""
    pytest.importorskip("torchao")
    config = config_of(tiny_sd3, picture, tmp_path, quantize="int8", steps=1)
    train(config)
    first = (config.out / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_what_is_refused(tiny_sd3, picture, tmp_path):
    with pytest.raises(UserError, match="beta must be above 0"):
        resolve(objective="dco", dco_beta=0.0)
    with pytest.raises(UserError, match=r"objective\.reduction must be one of mean, sum, not 'median'"):
        resolve(objective="dco", dco_reduction="median")
    with pytest.raises(UserError, match="leave it out, or choose --objective dco"):
        resolve(dco_beta=100.0)
    with pytest.raises(UserError, match="did you mean 'dco'"):
        resolve(objective="dcoo")
    with pytest.raises(UserError, match=r"'dco' has no objective\.weighting"):
        train(config_of(tiny_sd3, picture, tmp_path / "run", weighting="min-snr"))
    assert not (tmp_path / "run").exists()


def test_a_changed_objective_is_refused_on_resume(tiny_sd3, picture, tmp_path):
    config = config_of(tiny_sd3, picture, tmp_path, steps=1)
    train(config)
    for changed, message in (
        ({"dco_beta": 100.0}, "dco_beta: 1.0 -> 100.0"),
        ({"dco_reduction": "sum"}, "dco_reduction: mean -> sum"),
        ({"offset_noise": 0.1}, "offset_noise: 0.0 -> 0.1"),
        ({"objective": "denoise"}, "objective: dco -> denoise"),
    ):
        with pytest.raises(UserError, match=message):
            train(change(config, **changed))
