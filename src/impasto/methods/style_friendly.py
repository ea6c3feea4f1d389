"""Style-Friendly SNR sampler (Choi et al. 2024, arXiv 2411.14793): a style is learnt where it emerges, at high noise.

    lam ~ N(mu, sigma^2), mu = -6, sigma = 2, no time shift                                            (eq. 6)
    t = sigmoid(-lam / 2),  x_t = (1 - t) x_0 + t eps                                                  (eq. 1)
    L = E || v_theta(x_t, t, y) - (eps - x_0) ||^2, unweighted                                         (eq. 3)

A LoRA of rank 32 (A normal with std 1/r, B zero) on the attention of both streams; Adam, learning rate 1e-4, 300 steps
of four draws of one reference picture with its caption "{content} in {style} style" (appendix A). The recipe
`style-friendly` says the same to `train`, which adds all that a long run needs; a test holds the two together.
"""

from collections.abc import Sequence

import torch
from torch import nn

from impasto.adapters import lora
from impasto.adapters.config import LoRA
from impasto.data.prepare import Prepared
from impasto.families.base import Family
from impasto.noise.laws import StyleFriendly
from impasto.noise.random import generators


def style_friendly(
    family: Family,
    prepared: Prepared,
    *,
    mean: float = -6.0,
    std: float = 2.0,
    rank: int = 32,
    targets: Sequence[str] = ("attention",),
    lr: float = 1e-4,
    steps: int = 300,
    draws: int = 4,
    seed: int = 0,
) -> dict[str, nn.Parameter]:
    """Train a LoRA on `family.denoiser` and return its parameters.

    prepared: `prepare_items` of pictures of one shape; each view with its caption counts alike.
    """
    rows = [(view, pair.caption) for pair in prepared.all_pairs for view in pair.views * pair.repeats]
    x_NCHW = torch.stack([prepared.x[view] for view, _ in rows]).to(family.device)
    cond = {
        name: torch.stack([of_captions[caption] for _, caption in rows]).to(family.device)
        for name, of_captions in next(iter(prepared.conds.values())).items()
    }
    theta = lora.add(family, LoRA(rank=rank, targets=tuple(targets)), seed)
    adam = torch.optim.Adam(theta.values(), lr=lr, betas=(0.9, 0.999))
    for step in range(1, steps + 1):
        own = generators(seed, step, range(draws))
        i = torch.cat([torch.randint(len(x_NCHW), (1,), generator=g) for g in own])
        lam = StyleFriendly(mean, std)(own).to(family.device)
        eps = torch.stack([torch.randn(x_NCHW.shape[1:], generator=g) for g in own]).to(family.device)
        x_0, y = x_NCHW[i], {name: rows[i] for name, rows in cond.items()}
        v = family.predict(family.schedule.add_noise(x_0, eps, lam), lam, y)
        loss = (v - (eps - x_0)).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theta.values(), 1.0)
        adam.step()
    return theta
