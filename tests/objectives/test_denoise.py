"""One training step against a straight implementation of the published objective.

The reference knows nothing of impasto: plain diffusers and peft, the paper's equations 1-3, its own VAE and text calls.
"""

import pytest
import torch

from impasto.adapters.lora import add
from impasto.config import resolve
from impasto.data import references
from impasto.data.prepare import prepare
from impasto.families import load
from impasto.objectives import build
from impasto.plan import noise_law
from impasto.train import Draws

CAPTION = "a rocket in pixel art style"


def straight(folder, pixels, weights, lam, eps, length, sign=1.0, shift=0.06):
    """v_theta(x_t, t, y) against u = eps - x_0 with x_t = (1 - t) x_0 + t eps, t = sigmoid(-lambda / 2)."""
    from diffusers import StableDiffusion3Pipeline
    from peft import LoraConfig

    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    with torch.no_grad():
        x0 = (pipe.vae.encode(pixels).latent_dist.mean - shift) * pipe.vae.config.scaling_factor
        text, _, pooled, _ = pipe.encode_prompt(CAPTION, None, None, max_sequence_length=length)
    model = pipe.transformer.requires_grad_(False)
    names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=names))
    lora = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in lora.items():
        p.data.copy_(weights[name])
    n = len(lam)
    t = 1 / (1 + torch.exp(lam / 2))
    x_t = (1 - t).view(n, 1, 1, 1) * x0 + t.view(n, 1, 1, 1) * eps
    v = model(x_t, text.repeat(n, 1, 1), pooled.repeat(n, 1), 1000 * t).sample
    loss = ((v - sign * (eps - x0)) ** 2).mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in lora.items()}


@pytest.fixture(scope="module")
def step(tmp_path_factory, picture):
    """Ours: (base folder, pixels, weights, batch, lam, text length, loss, gradients)."""
    from tiny import sd3_folder

    folder = sd3_folder(tmp_path_factory.mktemp("base") / "sd3", zero_t5=False)
    config = resolve("style-friendly", str(folder), image=[str(picture)], caption=[CAPTION], batch=3, seed=4)
    family = load(str(folder), device="cpu")
    reference = references.read(picture)
    draws = Draws(config, noise_law(config), prepare(family, [(reference, CAPTION)], 16))
    parameters = add(family, rank=4, alpha=6.0, targets=config.targets, seed=0)
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=shared))
    batch, lam, own = draws(1, 0)
    loss = build(config, family)(family, batch, lam, own)["loss"]
    loss.backward()
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = {name: p.grad for name, p in parameters.items()}
    return folder, reference.pixels(16), weights, lam, batch.eps, draws.length(1), loss.item(), gradients


def worst(ours, theirs):
    """Largest relative error of a gradient tensor."""
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)).item() for n in theirs)


def test_loss_and_gradients_are_the_paper_s(step):
    folder, pixels, weights, lam, eps, length, loss, gradients = step
    expected, theirs = straight(folder, pixels, weights, lam, eps, length)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    moved = {n for n, g in theirs.items() if g.norm() > 1e-9}  # the last block's text queries move nothing
    assert len(moved) >= 28
    assert worst({n: gradients[n] for n in moved}, {n: theirs[n] for n in moved}) < 1e-5


@pytest.mark.parametrize("fault", [{"sign": -1.0}, {"shift": 0.0}, {"lam": -1.0}, {"eps": -1.0}], ids=str)
def test_a_planted_fault_is_seen(step, fault):
    folder, pixels, weights, lam, eps, length, loss, gradients = step
    lam, eps = lam * fault.pop("lam", 1.0), eps * fault.pop("eps", 1.0)
    expected, theirs = straight(folder, pixels, weights, lam, eps, length, **fault)
    assert loss != pytest.approx(expected, rel=1e-4)
    assert worst(gradients, theirs) > 1e-3
