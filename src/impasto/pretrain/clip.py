"""The small CLIP: a `CLIPModel` trained contrastively on the train styles; its text tower conditions the base models.

Loss (Radford et al. 2021): with unit image and text embeddings u_i, v_j and s = exp(logit_scale),
L = (CE(s u v^T, i) + CE(s v u^T, i)) / 2. Batches are grids of concepts x styles, so that a pair is identified neither
by concept nor by style alone. The bases depend on the text tower: once it is in the package it is locked, and only the
image tower is trained (Zhai et al. 2022, "LiT").
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from impasto.pretrain.pool import Pool
from impasto.pretrain.state import Clock, ema_update, load_state, save_state
from impasto.pretrain.tokenizer import MAX_TOKENS

WIDTH = 192
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # CLIPImageProcessor's numbers for this model


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Text: 32 tokens, width 192, 4 layers. Images: 128 px, patches of 16, width 128, 3 layers. Projections to 192."""
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,  # the pooled token; CLIP's default id is not in this vocabulary
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": WIDTH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def pixels(rgb: np.ndarray) -> torch.Tensor:
    """uint8 [n, 128, 128, 3] -> [n, 3, 128, 128] in [-1, 1], as by the folder's image processor."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids int64 [n, 32], padded and truncated as in the pipelines."""
    return tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def contrastive_loss(model: CLIPModel, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, share of images whose own caption is nearest) of n pairs."""
    u = F.normalize(model.visual_projection(model.vision_model(pixel_values=x).pooler_output).float(), dim=-1)
    v = F.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output).float(), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * u @ v.T
    own = torch.arange(len(x), device=x.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


def by_concept(pool: Pool) -> list[np.ndarray]:
    """Indices of the plain images of each concept, in the order of the concepts."""
    plain = pool.rows["plain"]
    concepts = np.array([pool.entries[i].concepts[0] for i in plain])
    return [plain[concepts == c] for c in np.unique(concepts)]


def _rows(pool: Pool, plain: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [n] of a batch: four plain images each of n / 8 concepts, then images of any kind."""
    chosen = rng.choice(len(plain), n // 8, replace=False)
    grid = [rng.choice(plain[c], 4, replace=len(plain[c]) < 4) for c in chosen]
    rest = pool.draw(n - 4 * len(chosen), {"plain": 0.3, "ground": 0.2, "procedural": 0.35, "scene": 0.15}, rng)
    return np.concatenate([*grid, rest])


def train_clip(
    pool: Pool,
    tokenizer: CLIPTokenizer,
    folder: Path,
    total_minutes: float,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    text: dict[str, torch.Tensor] | None = None,
) -> CLIPModel:
    """Train for `total_minutes` in all, cosine decay; resumes from `folder`; returns the EMA model.

    text: weights of a text tower with its projection (`text_model.*`, `text_projection.*`) to load and lock.
    """
    torch.manual_seed(seed)  # initial weights only
    model: Any = new_clip(tokenizer)
    ema: Any = new_clip(tokenizer)
    model.to(device)
    ema.to(device)
    ema.load_state_dict(model.state_dict())
    if text is not None:
        model.load_state_dict(text, strict=False)
        ema.load_state_dict(text, strict=False)
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    trained = [model.get_parameter(name) for name in names]
    averages = [ema.get_parameter(name) for name in names]  # not of a locked tower: averaging would turn -0 into 0
    decayed = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    parts = {"model": model, "ema": ema, "optimizer": optimizer}
    meta = load_state(folder, parts, device) or {"step": 0, "seconds": 0.0}
    step, clock, saved = meta["step"], Clock(total_minutes, meta["seconds"]), meta["seconds"]
    plain = by_concept(pool)
    hits: list[float] = []
    with clock:
        while not clock.stop:
            rng, text_rng = np.random.default_rng((seed, step)), random.Random(f"{seed} {step}")
            rows = _rows(pool, plain, batch, rng)
            ids = tokens(tokenizer, [pool.entries[i].caption(text_rng) for i in rows]).to(device)
            x = pixels(pool.rgb[rows]).to(device)
            x = torch.roll(x, rng.integers(-8, 9, 2).tolist(), dims=(2, 3))
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / 200)
                group["lr"] = lr * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * clock.progress)))
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss, hit = contrastive_loss(model, x, ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            hits.append(float(hit))
            ema_update(averages, trained, min(0.998, (1 + step) / (10 + step)))
            if step % 50 == 0:
                row = {"step": step, "minutes": round(clock.seconds / 60, 2), "samples": step * batch}
                row |= {"loss": round(float(loss.detach()), 3), "hit": round(float(np.mean(hits[-50:])), 3)}
                print(json.dumps(row), flush=True)
            if clock.seconds - saved > 300:
                save_state(folder, parts, {"step": step, "seconds": clock.seconds})
                saved = clock.seconds
    save_state(folder, parts, {"step": step, "seconds": clock.seconds})
    return ema.eval()
