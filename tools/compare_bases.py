"""How well two embedded bases denoise, and what the caption changes in each: by noise level, on train pictures.

    python tools/compare_bases.py mini-sd15 mini-sd3 --out docs/results/bases-by-level.json

The predicted picture x^ of noisy latents, no guidance, mean squares over pictures and latents:

    error      |x^(caption) - x0|^2, of each base
    heard      |x^(caption) - x^()|^2, what the caption changes, of each base
    apart      |x^_1(caption) - x^_2(caption)|^2, between the two
    unlike     |(x^_1(caption) - x^_1()) - (x^_2(caption) - x^_2())|^2, between what it changes in the two
    spread     of x^(caption) over DRAWS noises of one picture, of each base: how much of it hangs on the noise
    free       of x^(), the same

Both see the same latents, captions and noise. The last two are of the first quarter of the pictures. Three minutes
of two threads.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from impasto.bases import embedded as mini
from impasto.bases import loader
from impasto.families.base import Condition, Family, quiet
from impasto.files import atomic
from impasto.inversion.ddim import direction
from impasto.noise.schedule import per_item
from impasto.pretrain.pool import build_pool
from impasto.pretrain.run import known_concepts

SEED = 4242
LOG_SNRS = (-5, -4, -3, -2, 0, 2, 4)
DRAWS = 12


def picture(family: Family, x0: Tensor, eps: Tensor, log_snr: float, cond: Condition) -> Tensor:
    """x^ [n, c, h, w] that the base predicts of x0 [n, c, h, w] with noise eps at one log-SNR."""
    lam_B = torch.full((len(x0),), float(log_snr))
    z = family.schedule.add_noise(x0, eps, lam_B)
    alpha_B, sigma_B = family.schedule.alpha_sigma(lam_B)
    eps = direction(family, z, lam_B, family.predict(z, lam_B, cond))
    return (z - per_item(sigma_B, z) * eps) / per_item(alpha_B, z)


def spread(family: Family, x0: Tensor, noises: Tensor, log_snr: float, cond: Condition) -> float:
    """Variance [mean over pictures and latents] of x^ of x0 [n, c, h, w] over noises [k, n, c, h, w]."""
    told = torch.stack([picture(family, x0, eps, log_snr, cond) for eps in noises])
    return round(float(told.var(0).mean()), 5)


@torch.no_grad()
def main() -> None:
    """Measure, print a row for each level, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs=2, choices=mini.names())
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pool = build_pool(known_concepts("core_concepts"), ground=0, procedurals=0, scenes=0, seed=SEED)
    rows, rng = np.random.default_rng(SEED).choice(len(pool.entries), args.pictures), random.Random(SEED)
    captions = [pool.entries[i].caption(rng) for i in rows]
    with quiet():
        two = [loader.load(name, device="cpu", precision="fp32") for name in args.bases]
        x0 = two[0].encode_image(torch.from_numpy(pool.rgb[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1)
        texts = [(family.encode_prompt(captions), family.encode_prompt([""] * len(rows))) for family in two]
    few = len(rows) // 4
    fewer = [tuple({name: t[:few] for name, t in cond.items()} for cond in text) for text in texts]
    generator, table = torch.Generator().manual_seed(SEED), []
    noises = torch.randn((DRAWS, *x0[:few].shape), generator=torch.Generator().manual_seed(SEED + 1))
    for log_snr in LOG_SNRS:
        eps = torch.randn(x0.shape, generator=generator)
        told = [[picture(f, x0, eps, log_snr, cond) for cond in text] for f, text in zip(two, texts, strict=True)]
        (c1, u1), (c2, u2) = told
        row = {
            "error": [square(c1 - x0), square(c2 - x0)],
            "heard": [square(c1 - u1), square(c2 - u2)],
            "apart": square(c1 - c2),
            "unlike": square((c1 - u1) - (c2 - u2)),
            "spread": [spread(f, x0[:few], noises, log_snr, cond) for f, (cond, _) in zip(two, fewer, strict=True)],
            "free": [spread(f, x0[:few], noises, log_snr, cond) for f, (_, cond) in zip(two, fewer, strict=True)],
        }
        table.append({"log_snr": log_snr} | row)
        print(json.dumps(table[-1]), flush=True)
    hashes = {name: family.hash for name, family in zip(args.bases, two, strict=True)}
    with atomic(args.out) as path:
        path.write_text(json.dumps({"bases": hashes, "pictures": args.pictures, "levels": table}, indent=1) + "\n")


def square(x: Tensor) -> float:
    return round(float(x.square().mean()), 5)


if __name__ == "__main__":
    main()
