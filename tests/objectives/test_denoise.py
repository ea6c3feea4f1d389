"""One training step of every family against a straight implementation of the published objective.

The reference knows nothing of impasto: plain diffusers and peft, the papers' equations, its own packing, position
ids, guidance, size conditioning, VAE units and noise schedule. float32, B drawn non-zero.
"""

import numpy as np
import pytest
import torch
from fakes import prepare

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add
from impasto.bases.loader import load
from impasto.config import resolve
from impasto.data import references
from impasto.data.draws import Draws
from impasto.noise.laws import noise_law, truncate_to_schedule
from impasto.objectives.base import build_objective

CAPTION = "a rocket in pixel art style"
QKVO = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["add_q_proj", "add_k_proj", "add_v_proj"]


def flow_batch(lam, x0, eps):
    """t = sigmoid(-lam / 2), x_t = (1 - t) x_0 + t eps, u = eps - x_0 (Style-Friendly SNR sampler, eq. 1-3)."""
    t = 1 / (1 + torch.exp(lam / 2))
    part = t.view(-1, 1, 1, 1)
    return t, (1 - part) * x0 + part * eps, eps - x0


def diffusion_batch(lam, x0, eps, scheduler):
    """alpha^2 = ac, sigma^2 = 1 - ac (DDPM, eq. 4); t between the scheduler's own steps, linear in log-SNR."""
    ac = scheduler.alphas_cumprod.double().clamp(min=2**-24).numpy()
    t = np.interp(-lam.double().numpy(), -np.log(ac / (1 - ac)), np.arange(len(ac)))
    alpha, sigma = torch.sigmoid(lam).sqrt().view(-1, 1, 1, 1), torch.sigmoid(-lam).sqrt().view(-1, 1, 1, 1)
    target = eps if scheduler.config.prediction_type == "epsilon" else alpha * eps - sigma * x0
    return torch.from_numpy(t).float(), alpha * x0 + sigma * eps, target


def latents(vae, pixels, shift, scale):
    with torch.no_grad():
        return (vae.encode(pixels).latent_dist.mean - shift) * scale


def sd3(pipe, pixels, lam, eps, length, *, shift=0.06, scale=1.5, clock=1000.0, pooled=1.0):
    x0 = latents(pipe.vae, pixels, shift, scale)
    text, _, vector, _ = pipe.encode_prompt(CAPTION, None, None, max_sequence_length=length)
    t, x_t, target = flow_batch(lam, x0, eps)
    n = len(lam)
    return pipe.transformer(x_t, text.repeat(n, 1, 1), pooled * vector.repeat(n, 1), clock * t).sample, target


def flux(pipe, pixels, lam, eps, length, *, shift=0.06, scale=1.5, clock=1.0, guidance=1.0, row=1, swap=False):
    """Tokens of 2 x 2 latents, channel first; ids (0, row, column); the scale 1 where the model takes one."""
    x0 = latents(pipe.vae, pixels, shift, scale)
    text, vector, _ = pipe.encode_prompt(CAPTION, max_sequence_length=length)
    t, x_t, target = flow_batch(lam, x0, eps)
    n = len(lam)

    def tokens(z):
        rows = []
        for y in (0, 2):
            for x in (0, 2):
                patch = z[:, :, y : y + 2, x : x + 2]
                rows.append((patch.transpose(2, 3) if swap else patch).reshape(n, -1))
        return torch.stack(rows, 1)

    ids = torch.tensor([[0.0, y, x] for y in (0, row) for x in (0, 1)])
    takes = pipe.transformer.config.guidance_embeds
    velocity = pipe.transformer(
        tokens(x_t),
        encoder_hidden_states=text.repeat(n, 1, 1),
        pooled_projections=vector.repeat(n, 1),
        timestep=clock * t,
        img_ids=ids,
        txt_ids=torch.zeros(length, 3),
        guidance=torch.tensor([guidance] * n) if takes else None,
    ).sample
    return velocity, tokens(target)


def sd15(pipe, pixels, lam, eps, length, *, shift=0.0, scale=0.18215, clock=1.0):
    x0 = latents(pipe.vae, pixels, shift, scale)
    text, _ = pipe.encode_prompt(CAPTION, "cpu", 1, False)
    t, x_t, target = diffusion_batch(lam, x0, eps, pipe.scheduler)
    return pipe.unet(x_t, clock * t, text.repeat(len(lam), 1, 1)).sample, target


def sdxl(pipe, pixels, lam, eps, length, *, shift=0.0, scale=0.13025, clock=1.0, crop=0.0, pooled=1.0):
    x0 = latents(pipe.vae, pixels, shift, scale)
    text, _, vector, _ = pipe.encode_prompt(CAPTION, None, "cpu", 1, False)
    t, x_t, target = diffusion_batch(lam, x0, eps, pipe.scheduler)
    n = len(lam)
    sizes = torch.tensor([[16.0, 16.0, crop, crop, 16.0, 16.0]]).repeat(n, 1)
    added = {"text_embeds": pooled * vector.repeat(n, 1), "time_ids": sizes}
    return pipe.unet(x_t, clock * t, text.repeat(n, 1, 1), added_cond_kwargs=added).sample, target


FLOW = [{"shift": 0.0}, {"scale": 1.0}]
STRAIGHT = {  # name: (the published objective, layers, faults that must be seen beside those of all)
    "sd3": (sd3, [*QKVO, *TEXT, "to_add_out"], [*FLOW, {"clock": 1.0}, {"pooled": 0.0}]),
    "flux": (
        flux,
        [*QKVO, *TEXT, "proj_mlp", "proj_out"],
        [*FLOW, {"clock": 1000.0}, {"guidance": 3.5}, {"guidance": 0.0}, {"row": 0}, {"swap": True}],
    ),
    "schnell": (flux, [*QKVO, *TEXT, "proj_mlp", "proj_out"], [*FLOW, {"clock": 1000.0}]),
    "sd15": (sd15, QKVO, [{"shift": 0.1}, {"scale": 1.0}, {"clock": 0.001}]),
    "sd15-v": (sd15, QKVO, [{"clock": 0.001}]),
    "sdxl": (sdxl, QKVO, [{"scale": 0.18215}, {"clock": 0.001}, {"crop": 8.0}, {"pooled": 0.0}]),
}
OF_ALL = [{"sign": -1.0}, {"eps": -1.0}, {"level": 0.9}]


def folder_of(name, path):
    import tiny

    make = {
        "sd3": lambda: tiny.sd3_folder(path, zero_t5=False),
        "flux": lambda: tiny.flux_folder(path),
        "schnell": lambda: tiny.flux_folder(path, guidance_embeds=False),
        "sd15": lambda: tiny.sd15_folder(path),
        "sd15-v": lambda: tiny.sd15_folder(path, prediction_type="v_prediction", rescale_betas_zero_snr=True),
        "sdxl": lambda: tiny.sdxl_folder(path),
    }
    return make[name]()


class Step:
    """Ours (loss and gradients of one step) and what the straight implementation needs to repeat it."""

    def __init__(self, name, path, picture):
        from diffusers import DiffusionPipeline
        from peft import LoraConfig

        folder = folder_of(name, path)
        config = resolve("style-friendly", str(folder), image=[str(picture)], caption=[CAPTION], batch=3, seed=4)
        family = load(str(folder), device="cpu")
        reference = references.read(picture)
        law = truncate_to_schedule(noise_law(config), family.schedule)
        draws = Draws(config, law, prepare(family, [(reference, CAPTION)], 16))
        parameters = add(family, LoRA(rank=4, alpha=6.0, targets=config.adapter.targets), 0)
        shared = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, p in parameters.items():
                if "lora_B" in key:
                    p.copy_(0.2 * torch.randn(p.shape, generator=shared))
        batch, self.lam, own = draws(1, 0)
        loss = build_objective(config.objective, family)(family, batch, self.lam, own)["loss"]
        loss.backward()
        self.loss, self.gradients = loss.item(), {key: p.grad for key, p in parameters.items()}
        self.pixels, self.eps, self.length = reference.pixels(16), batch.eps, draws.length(1)

        self.straight, layers, _ = STRAIGHT[name]
        self.pipe = DiffusionPipeline.from_pretrained(folder)
        for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            if hasattr(self.pipe, part):
                getattr(self.pipe, part).requires_grad_(False)
        model = getattr(self.pipe, "unet", None) or self.pipe.transformer
        model.requires_grad_(False).add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=layers))
        self.lora = {key: p for key, p in model.named_parameters() if p.requires_grad}
        for key, p in self.lora.items():
            p.data.copy_(parameters[key].detach())

    def reference(self, *, sign=1.0, eps=1.0, level=1.0, **fault):
        """(loss, gradients) of the straight implementation, with a planted fault or without."""
        prediction, target = self.straight(
            self.pipe, self.pixels, level * self.lam, eps * self.eps, self.length, **fault
        )
        loss = ((prediction - sign * target) ** 2).mean()
        return loss.item(), dict(zip(self.lora, torch.autograd.grad(loss, list(self.lora.values())), strict=True))


@pytest.fixture(scope="module")
def step(tmp_path_factory, picture):
    """The step of a family by its name, made once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = Step(name, tmp_path_factory.mktemp("base") / name, picture)
        return made[name]

    return of


def worst(ours, theirs):
    """Largest relative error of a gradient tensor."""
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)).item() for n in theirs)


@pytest.mark.parametrize("name", STRAIGHT)
def test_loss_and_gradients_are_the_published_objective_s(step, name):
    ours = step(name)
    loss, gradients = ours.reference()
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    assert ours.gradients.keys() == gradients.keys()
    moved = {n for n, g in gradients.items() if g.norm() > 1e-9}
    assert len(gradients) - len(moved) <= 2  # SD3's last block throws its text away, and with it its text queries
    assert worst({n: ours.gradients[n] for n in moved}, {n: gradients[n] for n in moved}) < 1e-5


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, (_, _, own) in STRAIGHT.items() for fault in [*OF_ALL, *own]], ids=str
)
def test_a_planted_fault_is_seen(step, name, fault):
    ours = step(name)
    loss, gradients = ours.reference(**fault)
    assert worst(ours.gradients, {n: g for n, g in gradients.items() if g.norm() > 1e-9}) > 1e-3
    assert loss != pytest.approx(ours.loss, rel=1e-5)
