"""Pretraining of the embedded `mini-sd3`: an MM-DiT with rectified flow on the latents of the train styles.

x_t = (1 - t) x0 + t eps, target eps - x0, t from a logit-normal(.2, 1) (more mean = more noise); loss = mean square.
Muon moves the matrices of the blocks, AdamW the rest. The text tower is frozen. One batch in twenty is a quarter as
large and carries the 256 zero T5 tokens of the pipeline's default call, so that the plain call draws the same things.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from impasto.families.mini import ZERO_WIDTH
from impasto.pretrain.autoencoder import PATCH, read_encoder
from impasto.pretrain.clip import WIDTH, tokens
from impasto.pretrain.pool import Pool

CAPTIONS = 8  # per picture of the pool, drawn when the pool is made
DROPPED = 0.1  # share of captions replaced by the empty text, for guidance
TEXT = WIDTH + ZERO_WIDTH
SIZES = {"small": (6, 3), "7x4": (7, 4), "medium": (8, 4)}  # layers, heads of 64: 7.8M, 16.2M and 18.7M parameters
SHARES = {"plain": 0.55, "ground": 0.1, "procedural": 0.3, "scene": 0.05}
SHIFT = 1.0


def new_transformer(size: str = "small") -> SD3Transformer2DModel:
    """An MM-DiT on latents [n, 16, 16, 16] in patches of 2: 64 image tokens; larger pictures up to 512 px work too."""
    layers, heads = SIZES[size]
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=TEXT,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=TEXT,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps with a shift of 1: at 64 tokens the noise is not hidden by their number."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


@dataclass
class Bank:
    """What a step draws from, on the device: scaled latents [n, 16, 16, 16] fp16, token ids [n, CAPTIONS, 32] int16."""

    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor  # [32], the ids of the empty text
    pool: Pool


@torch.no_grad()
def make_bank(pool: Pool, vae: Any, tokenizer: CLIPTokenizer, seed: int, device: str = "cpu") -> Bank:
    """Encode every picture once and write CAPTIONS captions for each."""
    kernel, bias = read_encoder(vae.to(device))
    latents = []
    for start in range(0, len(pool.rgb), 256):
        x = torch.from_numpy(pool.rgb[start : start + 256]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        z = torch.nn.functional.conv2d(x, kernel, bias, stride=PATCH)
        latents.append((z * vae.config.scaling_factor).half())
    rng = random.Random(f"captions {seed}")
    ids = []
    for start in range(0, len(pool.entries), 512):
        texts = [entry.caption(rng) for entry in pool.entries[start : start + 512] for _ in range(CAPTIONS)]
        ids.append(tokens(tokenizer, texts).to(torch.int16))
    stacked = torch.cat(ids).reshape(len(pool.entries), CAPTIONS, -1)
    return Bank(torch.cat(latents), stacked.to(device), tokens(tokenizer, [""])[0].to(device, torch.int16), pool)


@torch.no_grad()
def encode_text(
    tower: CLIPTextModelWithProjection, ids: torch.Tensor, t5_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [n, 32 + t5_tokens, 200], pooled [n, 200]) as StableDiffusion3Pipeline.encode_prompt builds them here."""
    out = tower(input_ids=ids.long(), output_hidden_states=True)
    hidden = torch.nn.functional.pad(out.hidden_states[-2], (0, ZERO_WIDTH, 0, t5_tokens))
    return hidden, torch.nn.functional.pad(out.text_embeds, (0, ZERO_WIDTH))


def draw(
    bank: Bank, n: int, seed: int, step: int, shares: dict[str, float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x0, token ids, t, eps) of a batch, a function of (seed, step)."""
    rng = np.random.default_rng((seed, step))
    rows = torch.from_numpy(bank.pool.draw(n, shares, rng)).to(bank.latents.device)
    which = torch.from_numpy(rng.integers(CAPTIONS, size=n)).to(rows.device)
    ids = bank.ids[rows, which]
    ids[torch.from_numpy(rng.random(n) < DROPPED).to(rows.device)] = bank.empty
    device = rows.device
    g = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
    t = torch.sigmoid(0.2 + torch.randn(n, generator=g, device=device))
    x0 = bank.latents[rows].float()
    return x0, ids, t, torch.randn(x0.shape, generator=g, device=device)


def flow_loss(
    model: torch.nn.Module,
    x0: torch.Tensor,
    eps: torch.Tensor,
    t: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """mean |v(x_t, t, c) - (eps - x0)|^2 with x_t = (1 - t) x0 + t eps; t [n] in (0, 1), the model is told 1000 t."""
    t_ = t[:, None, None, None]
    v = model(
        hidden_states=(1 - t_) * x0 + t_ * eps,
        timestep=1000 * t,
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return (v.float() - (eps - x0)).pow(2).mean()


def optimizers(model: SD3Transformer2DModel, lr: float) -> list[torch.optim.Optimizer]:
    """[Muon for the blocks' matrices at `lr`, AdamW for everything else at lr / 2]."""
    matrices = [p for p in model.transformer_blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def set_progress(opts: Sequence[torch.optim.Optimizer], lr: float, step: int, progress: float) -> float:
    """Warm-up over 100 steps, constant, linear to zero over the last third of a session; returns the factor."""
    factor = min(1.0, (step + 1) / 100) * min(1.0, (1 - progress) * 3 + 1e-3)
    for optimizer, share in zip(opts, (1.0, 0.5), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * share * factor
    return factor


def export_weights(model: SD3Transformer2DModel, folder: Path) -> None:
    """Write `folder`/transformer (fp16) and `folder`/scheduler."""
    import copy

    copy.deepcopy(model).half().save_pretrained(folder / "transformer")
    new_scheduler().save_pretrained(folder / "scheduler")
