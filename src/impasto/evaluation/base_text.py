"""Text by the base itself: does its denoising tell that an image shows its own prompt, rather than the others'?

With images x_i of prompts y_i, and noises eps_k at log-SNR lam_k that all images share:

    e[i, j] = mean_k || predict(alpha_k x_i + sigma_k eps_k, lam_k, y_j) - target ||^2
    g[i, j] = 1 - e[i, j] / mean_j e[i, j]
    text    = mean_i g[i, i]

A diffusion classifier (Li et al. 2023, arXiv 2303.16203) by the frozen base: prompts that name the same style differ in
what they ask for. It needs no encoder, knows what the base knows, and no judge is asked. The probability of the own
prompt would say nothing here: of images by a model near the base it is 1 (.9999 on icon-park at every checkpoint).
"""

import torch
from torch import Tensor

from impasto.families.base import Condition, Family
from impasto.noise.random import generator

LEVELS = (-3.5, -2.5)
"""Log-SNR of the noises, first to last: where the prompt's thing matters most (`regions.error`)."""
DRAWS, BATCH = 4, 64


@torch.no_grad()
def text_by_base(family: Family, x: Tensor, cond: Condition, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """g float32 [n, m] of latents x [n, C, h, w] and the m rows of `cond`: each prompt's gain on the mean."""
    x = x.to(family.device)
    lam = torch.linspace(*LEVELS, draws, device=x.device)
    noise = [torch.randn(x.shape[1:], generator=generator(seed, k, "text noise")) for k in range(draws)]
    count = len(next(iter(cond.values())))
    rows = [(i, j, k) for i in range(len(x)) for j in range(count) for k in range(draws)]
    found = []
    for start in range(0, len(rows), BATCH):
        i, j, k = map(list, zip(*rows[start : start + BATCH], strict=True))
        eps = torch.stack([noise[n] for n in k]).to(x.device)
        own: Condition = {name: part[j].to(x.device) for name, part in cond.items()}
        found.append(family.error(x[i], eps, lam[k], own).double().cpu())
    errors = torch.cat(found).view(len(x), count, draws).mean(-1)
    return (1 - errors / errors.mean(1, keepdim=True)).float()


def text_score(gains: Tensor) -> float:
    """The mean gain of the own prompt, gains [n, n]: 0 where it is denoised no better than the others, at most 1."""
    return gains.diagonal().mean().item()
