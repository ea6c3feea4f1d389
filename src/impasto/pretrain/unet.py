"""The denoiser of `mini-sd15`: a U-Net that predicts the noise, on the scaled-linear schedule of SD1.5.

x_t = sqrt(ac_t) x0 + sqrt(1 - ac_t) eps, target eps, t uniform in 0..999; an item's mean squared error is weighted by
min(sqrt(SNR_t), 5) / SNR_t, SNR_t = ac_t / (1 - ac_t), so that the error of the predicted x0 has the weight
min(sqrt(SNR), 5). Like min-SNR (Hang et al. 2023, arXiv 2303.09556: min(SNR, 5)) it limits low noise, but it weights
log-SNR -4, where an image's colours are decided, seven times as much.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from impasto.pretrain.base import Latents
from impasto.pretrain.clip import WIDTH

LIMIT = 5.0


class UNet(Latents):
    """See `base.Denoiser`. A shape is the channels at 16, 8 and 4 latents per side; the lower two have attention."""

    part = "unet"
    architecture = "UNet2DConditionModel, noise prediction, scaled-linear schedule"
    call: Mapping[str, Any] = {}
    sizes: Mapping[str, tuple[int, ...]] = {
        "small": (96, 192, 192),
        "medium": (96, 192, 256),
    }  # 15.1M, 21.0M parameters
    long_text = False

    def new(self, shape: tuple[int, ...]) -> UNet2DConditionModel:
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=16,
            out_channels=16,
            block_out_channels=shape,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,  # diffusers' name for the number of heads
        )

    def shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(config["block_out_channels"])

    def scheduler(self) -> PNDMScheduler:
        """SD1.5's settings."""
        return PNDMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="epsilon",
            timestep_spacing="leading",
        )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler().alphas_cumprod.float()

    def matrices(self, model: Any) -> list[nn.Parameter]:
        """The matrices of the attention blocks."""
        return [p for name, p in model.named_parameters() if p.ndim == 2 and ".attentions." in name]

    def text(self, tower: CLIPTextModelWithProjection, ids: Tensor, long: bool = False) -> dict[str, Tensor]:
        """Tokens [n, 32, 192]: the normalised last hidden states, as in StableDiffusionPipeline."""
        return {"encoder_hidden_states": tower(input_ids=ids.long()).last_hidden_state}

    def levels(self, z: Tensor) -> Tensor:
        """Uniform in 0..999, by the normal cdf."""
        return (1000 * torch.special.ndtr(z)).long().clamp(0, 999)

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ac = self.alphas_cumprod.to(t.device)[t]
        return ac.sqrt(), (1 - ac).sqrt()

    def loss(
        self,
        model: Any,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        teacher_targets: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        alpha, sigma = self.signal(t)
        noisy = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
        out = model(noisy, t, return_dict=False, **cond)[0]
        _, eps = teacher_targets or (x0, eps)
        snr = (alpha / sigma) ** 2
        return ((out.float() - eps).pow(2).mean((1, 2, 3)) * snr.sqrt().clamp(max=LIMIT) / snr).mean()
