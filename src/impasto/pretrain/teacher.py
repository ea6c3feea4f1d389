"""Knowledge distillation: a packaged base's predictions replace part of the training targets.

The minimiser of a denoiser's squared error is the posterior mean of x0 and eps given the noisy latent. The drawn x0 and
eps are samples of that posterior, a noisy target; a trained base approximates the mean. The targets are

    x0' = (1 - w) x0 + w x0^,   eps' = (1 - w) eps + w eps^,

x0^ and eps^ being the teacher's for the same noisy latent, level and caption; w = 0 is the ordinary loss. Output
distillation as in BK-SDM (Kim et al. 2023, arXiv 2305.15798), across two parametrisations related by the log-SNR. The
bases share latents and text tower.
"""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from impasto.bases import embedded as mini
from impasto.errors import UserError, nearest
from impasto.files import MODELS
from impasto.pretrain.mmdit import MMDiT

TEACHERS = ("mini-sd3",)


class Teacher:
    """The packaged base `name` as a teacher. share: w in (0, 1]. Raises UserError for a base that cannot teach."""

    def __init__(self, name: str, share: float, tower: Any, device: str = "cpu") -> None:
        if name not in TEACHERS:
            raise UserError(f"{name!r} cannot teach: {nearest(name, TEACHERS)}")
        if name not in mini.names():
            raise UserError(f"the weights of {name} are not in this package: it cannot teach")
        if not 0 < share <= 1:
            raise UserError(f"the teacher's share must be above 0 and up to 1, not {share}")
        self.name, self.share, self.net, self.tower = name, share, MMDiT(), tower
        folder = MODELS / name / self.net.part
        self.model: Any = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(x0', eps') [n, 16, 16, 16] for alpha x0 + sigma eps; alpha, sigma [n], token ids [n, 32].

        Divided by alpha + sigma, the noisy latent is that of the rectified flow at t = sigma / (alpha + sigma), and
        x0^ = x_t - t v, eps^ = x_t + (1 - t) v.
        """
        t = sigma / (alpha + sigma)
        t_ = t[:, None, None, None]
        x_t = (1 - t_) * x0 + t_ * eps
        v = self.net.predict(self.model, x_t, t, self.net.text(self.tower, ids)).float()
        return x0.lerp(x_t - t_ * v, self.share), eps.lerp(x_t + (1 - t_) * v, self.share)
