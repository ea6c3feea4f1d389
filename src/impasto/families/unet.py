"""The base class of SD1.5 and SDXL: a U-Net with a variance-preserving noise schedule.

`scheduler/scheduler_config.json` sets the prediction, eps or `v = alpha eps - sigma x` (Salimans & Ho 2022, arXiv
2202.00512, appendix D), and the schedule; SD1.5's is `betas = linspace(sqrt(.00085), sqrt(.012), 1000)^2`, log-SNR 7.07
to -5.36.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from impasto.errors import UserError
from impasto.families.pipeline import DiffusersFolder
from impasto.noise.schedule import VariancePreserving, per_item

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CROSS, SELF = tuple(f"attn2.{name}" for name in ATTENTION), tuple(f"attn1.{name}" for name in ATTENTION)

KINDS = {
    "attention": SELF + CROSS,
    "self_attention": SELF,
    "cross_attention": CROSS,
    "cross_attention_kv": ("attn2.to_k", "attn2.to_v"),
    "cross_attention_q": ("attn2.to_q",),
    "cross_attention_out": ("attn2.to_out.0",),
    "mlp_out": ("ff.net.2",),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "convolution": ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv"),
}


class UNet(DiffusersFolder):
    """A U-Net family without text encoding. z_t (B, C, h, w) with any number of channels."""

    denoiser_class = "UNet2DConditionModel"
    part = "unet"
    layers = KINDS
    image_attention = ("attn1",)

    @cached_property
    def text_lengths(self) -> Mapping[int, float]:
        """CLIP's fixed length."""
        return {self.config("text_encoder")["max_position_embeddings"]: 1.0}

    @cached_property
    def schedule(self) -> VariancePreserving:
        """From the scheduler's `alphas_cumprod`. Raises UserError for a schedule that is not defined by betas."""
        from diffusers import DDPMScheduler

        config = self.config("scheduler")
        if "beta_schedule" not in config or config["_class_name"].startswith("EDM"):
            raise UserError(
                f"{str(self.folder)!r} has a {config['_class_name']}: only schedules of betas are supported"
            )
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        known = {key: config[key] for key in (*keys, "rescale_betas_zero_snr") if key in config}
        return VariancePreserving.from_alphas_cumprod(DDPMScheduler(**known).alphas_cumprod)

    @cached_property
    def prediction(self) -> str:
        """ "epsilon" or "v_prediction". Raises UserError for anything else."""
        name = self.config("scheduler").get("prediction_type", "epsilon")
        if name not in ("epsilon", "v_prediction"):
            raise UserError(f"{str(self.folder)!r} predicts {name!r}: only epsilon and v_prediction are supported")
        return name

    @property
    def shift_scale(self) -> tuple[float, float]:
        """(0, scale): U-Net pipelines have no shift."""
        return 0.0, self.vae.config.scaling_factor

    def denoise(self, z_t: Tensor, lam: Tensor, text: Tensor, **added: Any) -> Tensor:
        """The U-Net's output at the (non-integer) timestep of `lam`."""
        return self.denoiser(
            z_t.to(self.dtype),
            self.schedule.timestep(lam),
            encoder_hidden_states=text.to(self.dtype),
            return_dict=False,
            **added,
        )[0]

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return eps
        alpha_B, sigma_B = self.schedule.alpha_sigma(lam.float())
        return per_item(alpha_B, x) * eps - per_item(sigma_B, x) * x
