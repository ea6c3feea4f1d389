"""How well two embedded bases denoise, and what the caption changes in each: by noise level, on train pictures.

    python scripts/compare_bases.py mini-sd15 mini-sd3 --out docs/results/bases-by-level.json

The predicted picture x^ of noisy latents, no guidance, mean squares over pictures and latents:

    error      |x^(caption) - x0|^2, of each base
    heard      |x^(caption) - x^()|^2, what the caption changes, of each base
    apart      |x^_1(caption) - x^_2(caption)|^2, between the two
    unlike     |(x^_1(caption) - x^_1()) - (x^_2(caption) - x^_2())|^2, between what it changes in the two

Both see the same latents, captions and noise, at the levels of the first one's schedule. Half a minute.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from impasto.families import mini
from impasto.paths import MODELS, atomic
from impasto.pretrain import base as shared
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.pool import build_pool
from impasto.pretrain.run import DENOISERS, known_concepts
from impasto.pretrain.unet import UNet

SEED = 4242
LOG_SNRS = (-5, -4, -3, -2, 0, 2, 4)


class Base:
    """A packaged base as a function from noisy latents to the picture."""

    def __init__(self, name: str, tower: Any) -> None:
        self.net, self.tower = DENOISERS[name](), tower
        self.model: Any = type(self.net.new(self.net.sizes["small"])).from_pretrained(MODELS / name / self.net.part)
        self.model.float().eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, eps: Tensor, log_snr: float, ids: Tensor) -> Tensor:
        """x^ [n, 16, 16, 16] of alpha x0 + sigma eps at that log-SNR, as this base scales it; token ids [n, 32]."""
        cond = self.net.text(self.tower, ids)
        if isinstance(self.net, UNet):
            levels = torch.logit(self.net.alphas_cumprod.double()).float()  # log-SNR of 0..999
            t = int((levels - log_snr).abs().argmin())
            alpha, sigma = (float(v) for v in self.net.signal(torch.tensor(t)))
            noisy = alpha * x0 + sigma * eps
            out = self.model(noisy, torch.full((len(x0),), t), return_dict=False, **cond)[0]
            return (noisy - sigma * out.float()) / alpha
        assert isinstance(self.net, MMDiT)
        t_ = 1 / (1 + np.exp(log_snr / 2))
        noisy = (1 - t_) * x0 + t_ * eps
        return noisy - t_ * self.net.predict(self.model, noisy, torch.full((len(x0),), t_), cond).float()


def main() -> None:
    """Measure, print a row for each level, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs=2, choices=sorted(DENOISERS))
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tower = mini.text_tower(MODELS / "clip")
    pool = build_pool(known_concepts("core_concepts"), ground=0, procedurals=0, scenes=0, seed=SEED)
    vae = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32)
    bank = shared.make_bank(pool, vae, CLIPTokenizer.from_pretrained(MODELS / "clip"), SEED)
    rows = torch.from_numpy(np.random.default_rng(3).choice(pool.rows["plain"], args.pictures))
    x0, ids = bank.latents[rows].float(), bank.ids[rows, 0]
    one, two = (Base(name, tower) for name in args.bases)
    generator, table = torch.Generator().manual_seed(1), []
    for log_snr in LOG_SNRS:
        eps = torch.randn(x0.shape, generator=generator)
        told = [(b(x0, eps, log_snr, ids), b(x0, eps, log_snr, bank.empty.expand_as(ids))) for b in (one, two)]
        (c1, u1), (c2, u2) = told
        row = {
            "error": [square(c1 - x0), square(c2 - x0)],
            "heard": [square(c1 - u1), square(c2 - u2)],
            "apart": square(c1 - c2),
            "unlike": square((c1 - u1) - (c2 - u2)),
        }
        table.append({"log_snr": log_snr} | row)
        print(json.dumps(table[-1]), flush=True)
    hashes = {name: mini.card(name)["weights_sha256"] for name in args.bases}
    with atomic(args.out) as path:
        path.write_text(json.dumps({"bases": hashes, "pictures": args.pictures, "levels": table}, indent=1) + "\n")


def square(x: Tensor) -> float:
    return round(float(x.square().mean()), 5)


if __name__ == "__main__":
    main()
