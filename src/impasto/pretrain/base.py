"""Pretraining of the embedded bases on the latents of the train styles: the part common to all denoisers.

A batch is a function of (seed, step): images of the pool, one of their captions each (the empty text for a tenth, for
guidance), standard normal numbers that the denoiser maps to its noise levels, and the noise. The text tower is frozen
or trained too. Muon trains the matrices of the attention and feed-forward layers, AdamW the rest.
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from impasto.errors import UserError
from impasto.pretrain.autoencoder import PATCH, read_encoder
from impasto.pretrain.clip import tokens
from impasto.pretrain.muon import StackedMuon
from impasto.pretrain.pool import KINDS, Pool

CAPTIONS = 8  # per image of the pool, sampled when the bank is made
DROPPED = 0.1  # share of captions replaced by the empty text, for guidance
SHARES = {"plain": 0.55, "ground": 0.1, "procedural": 0.3, "scene": 0.05}


class Denoiser(Protocol):
    """One kind of denoiser and its pretraining objective; implementations: `mmdit`, `unet`, `uvit`.

    part: the pipeline's component, and the folder of its weights in the package. autoencoder: the folder of its
    autoencoder there. pipeline_class: what samples. call: additional arguments of the pipeline's call. long_text:
    whether one batch in twenty, a quarter as large, has the text in its longer form. flash_on_cpu: whether flash
    attention is faster there than the plain formula. sizes: named shapes.
    """

    part: str
    autoencoder: str
    pipeline_class: Any
    architecture: str
    call: Mapping[str, Any]
    long_text: bool
    flash_on_cpu: bool
    sizes: Mapping[str, tuple[int, ...]]

    def new(self, shape: tuple[int, ...]) -> Any:
        """A denoiser of latents [n, 16, 16, 16] with random weights."""
        ...

    def shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a saved config."""
        ...

    def scheduler(self) -> Any:
        """The scheduler saved in the base's folder."""
        ...

    def load_autoencoder(self, folder: Path) -> Any:
        """The autoencoder, float32."""
        ...

    def encode(self, vae: Any, device: str) -> Callable[[Tensor], Tensor]:
        """Images uint8 [n, h, w, 3] on the device -> what the bank keeps of them."""
        ...

    def matrices(self, model: Any) -> list[nn.Parameter]:
        """The parameters that Muon trains."""
        ...

    def text(self, tower: CLIPTextModelWithProjection, ids: Tensor, long: bool = False) -> dict[str, Tensor]:
        """The conditions of token ids [n, 32], equal to those of the pipeline's `encode_prompt`."""
        ...

    def levels(self, z: Tensor) -> Tensor:
        """Noise levels [n] from standard normal numbers [n]."""
        ...

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) [n] of levels t [n]: the noisy latent is alpha x0 + sigma eps."""
        ...

    def loss(
        self,
        model: Any,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        teacher_targets: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The mean loss of latents [n, 16, 16, 16] with noise eps at levels t [n].

        teacher_targets: (x0', eps') to compute the target from, instead of x0 and eps; see `teacher.py`.
        """
        ...

    def compile(self, model: Any) -> Any:
        """The model for `loss`, compiled for batches of one size."""
        ...


class Latents:
    """The part of `Denoiser` of bases on the latents of the packaged `AutoencoderKL`."""

    autoencoder = "autoencoder"
    pipeline_class: Any = DiffusionPipeline
    flash_on_cpu = False

    def load_autoencoder(self, folder: Path) -> Any:
        return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()

    def compile(self, model: Any) -> Any:
        return torch.compile(model, dynamic=False)

    def encode(self, vae: Any, device: str) -> Callable[[Tensor], Tensor]:
        """Scaled latents [n, 16, h/8, w/8], fp16."""
        kernel, bias = read_encoder(vae.to(device))

        def latents(rgb: Tensor) -> Tensor:
            x = rgb.permute(0, 3, 1, 2).float() / 127.5 - 1
            z = torch.nn.functional.conv2d(x, kernel, bias, stride=PATCH)
            return (z * vae.config.scaling_factor).half()

        return latents


def shape_of(net: Denoiser, size: str) -> tuple[int, ...]:
    """The shape named `size`, or given by numbers, "7x4". Raises UserError when it is neither."""
    known = next(iter(net.sizes.values()))
    parts = size.split("x")
    if size not in net.sizes and (len(parts) != len(known) or not all(part.isdigit() for part in parts)):
        example = "x".join(str(part) for part in known)
        raise UserError(f"unknown size {size!r}: {', '.join(net.sizes)}, or numbers as in {example}")
    shape = net.sizes.get(size) or tuple(int(part) for part in parts)
    if min(shape) < 1:
        raise UserError(f"size {size!r}: its numbers are at least 1")
    return shape


def shares_of(plain: float | None) -> dict[str, float]:
    """SHARES with `plain` for single objects on white, the others scaled to a sum of 1. Raises UserError."""
    if plain is None:
        return dict(SHARES)
    if not 0 <= plain <= 1:
        raise UserError(f"the share of plain pictures must be between 0 and 1, not {plain}")
    rest = (1 - plain) / (1 - SHARES["plain"])
    return {kind: plain if kind == "plain" else share * rest for kind, share in SHARES.items()}


@dataclass
class Bank:
    """The training data on the device: scaled latents [n, 16, 16, 16] fp16, or image tokens [n, 1, 16, 16] int16; token
    ids of the captions [n, CAPTIONS, 32] int16."""

    latents: Tensor
    ids: Tensor
    empty: Tensor  # [32], the ids of the empty text
    pool: Pool

    def x0(self, rows: Tensor) -> Tensor:
        """Latents as float32, image tokens as int64."""
        found = self.latents[rows]
        return found.float() if found.is_floating_point() else found.long()

    def extend(self, latents: Tensor, ids: Tensor, kind: Tensor) -> None:
        """Append pictures, without their entries in the pool. kind: indices into KINDS, [n]."""
        start, device = len(self.latents), self.latents.device
        self.latents = torch.cat([self.latents, latents.to(device)])
        self.ids = torch.cat([self.ids, ids.to(device)])
        for k, name in enumerate(KINDS):
            new = start + np.flatnonzero(kind.numpy() == k)
            self.pool.rows[name] = np.concatenate([self.pool.rows[name], new])


@torch.no_grad()
def make_bank(
    pool: Pool,
    vae: Any,
    tokenizer: CLIPTokenizer,
    seed: int,
    device: str = "cpu",
    encode: Callable[[Any, str], Callable[[Tensor], Tensor]] | None = None,
) -> Bank:
    """Encode every image of the pool once, and tokenise CAPTIONS random captions of each.

    encode: as in `Denoiser`, that of `Latents` by default.
    """
    images = (encode or Latents().encode)(vae, device)
    latents = [images(torch.from_numpy(part).to(device)) for part in np.array_split(pool.rgb, len(pool.rgb) // 256 + 1)]
    rng = random.Random(f"captions {seed}")
    ids = []
    for start in range(0, len(pool.entries), 512):
        texts = [entry.caption(rng) for entry in pool.entries[start : start + 512] for _ in range(CAPTIONS)]
        ids.append(tokens(tokenizer, texts).to(torch.int16))
    stacked = torch.cat(ids).reshape(len(pool.entries), CAPTIONS, -1)
    return Bank(torch.cat(latents), stacked.to(device), tokens(tokenizer, [""])[0].to(device, torch.int16), pool)


def draw(
    bank: Bank, n: int, seed: int, step: int, shares: Mapping[str, float], offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x0, token ids, standard normal numbers [n], eps) of a batch, a function of (seed, step).

    offset: scale of offset noise in eps, see `noise.offset`; drawn last, so that the other draws do not change.
    """
    rng = np.random.default_rng((seed, step))
    rows = torch.from_numpy(bank.pool.draw(n, shares, rng)).to(bank.latents.device)
    which = torch.from_numpy(rng.integers(CAPTIONS, size=n)).to(rows.device)
    ids = bank.ids[rows, which]
    ids[torch.from_numpy(rng.random(n) < DROPPED).to(rows.device)] = bank.empty
    device = rows.device
    g = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
    z = torch.randn(n, generator=g, device=device)
    x0 = bank.x0(rows)
    return x0, ids, z, noise(x0, g, offset)


def noise(x0: Tensor, generator: torch.Generator, offset: float) -> Tensor:
    """eps of latents x0 [n, c, h, w], with offset noise of that scale, drawn last."""
    eps = torch.randn(x0.shape, generator=generator, device=x0.device)
    if offset:
        eps = eps + offset * torch.randn(*x0.shape[:2], 1, 1, generator=generator, device=x0.device)
    return eps


def optimizers(
    net: Denoiser, model: nn.Module, lr: float, tower: nn.Module | None = None
) -> list[torch.optim.Optimizer]:
    """[Muon for `net.matrices` at `lr`, AdamW for everything else at lr / 2]. tower: a text tower to train too.

    Its parameters come last, so that a state saved without it can be loaded. On CUDA Muon is stacked by shape and AdamW
    fused; their states are the same.
    """
    layers: Any = tower.text_model.encoder if tower is not None else None  # type: ignore[union-attr]
    matrices = net.matrices(model) + ([p for p in layers.parameters() if p.ndim == 2] if layers is not None else [])
    chosen = {id(p) for p in matrices}
    everything = [*model.parameters(), *(tower.parameters() if tower is not None else ())]
    rest = [p for p in everything if id(p) not in chosen]
    cuda = next(model.parameters()).is_cuda
    muon = StackedMuon if cuda else torch.optim.Muon
    return [
        muon(matrices, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.99), weight_decay=0.0, fused=cuda or None),
    ]


def set_progress(opts: Sequence[torch.optim.Optimizer], lr: float, step: int, progress: float) -> float:
    """Warm-up over 100 steps, constant, linear to zero over the last third of a session; returns the factor."""
    factor = min(1.0, (step + 1) / 100) * min(1.0, (1 - progress) * 3 + 1e-3)
    for optimizer, share in zip(opts, (1.0, 0.5), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * share * factor
    return factor


def export_weights(net: Denoiser, model: Any, folder: Path) -> None:
    """Write the denoiser (fp16) and the scheduler into `folder`."""
    copy.deepcopy(model).half().save_pretrained(folder / net.part)
    net.scheduler().save_pretrained(folder / "scheduler")
    for file in (folder / net.part).glob("*.safetensors"):
        file.chmod(0o644)
