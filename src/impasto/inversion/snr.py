"""How much of an image is left in its inversion noise: by InstaStyle's formula, by DDIM's own step, and as measured.

`alphas` (n,) are `alphas_cumprod` along the inversion, the image's own level first: n - 1 steps. The paper's figure is
that of a step per timestep, `sigmoid(schedule.levels)`; fewer steps give another one.
"""

import torch
from torch import Tensor


def paper_snr(alphas: Tensor) -> float:
    """SNR(T) = 1 / sum_i (alpha_0 / alpha_i) (s_i - s_{i-1})^2,  s = sqrt(1 / alpha - 1)  (InstaStyle, eq. 8).

    0.015144 for the 1000 levels of Stable Diffusion. The formula leaves out the factor sqrt(alpha_i) of DDIM's noise
    term and takes the predictions of different steps as independent: see `ddim_snr`.
    """
    alphas = alphas.double()
    s = (1 / alphas - 1).sqrt()
    return 1 / (alphas[0] / alphas[1:] * s.diff().square()).sum().item()


def ddim_snr(alphas: Tensor, *, coherent: bool) -> float:
    """The same of DDIM's step, z_T = sqrt(alpha_T / alpha_0) z_0 + sqrt(alpha_T) sum_i (s_i - s_{i-1}) eps_i.

    coherent: the same eps in every step, alpha_0 (s_T - s_0)^2 under the 1; else independent ones of unit variance.
    """
    alphas = alphas.double()
    ds = (1 / alphas - 1).sqrt().diff()
    noise = ds.sum().square() if coherent else ds.square().sum()
    return 1 / (alphas[0] * noise).item()


def correlation(noise: Tensor, latents: Tensor) -> float:
    """Pearson's correlation of two tensors of one shape over all elements, in [-1, 1]."""
    return torch.corrcoef(torch.stack([noise.flatten(), latents.flatten()]).double())[0, 1].item()


def snr_of_correlation(rho: float) -> float:
    """rho^2 / (1 - rho^2): the SNR of c x + n with n independent of x."""
    return rho**2 / (1 - rho**2)
