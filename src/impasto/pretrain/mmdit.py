"""The denoiser of `mini-sd3`: an MM-DiT with rectified flow.

x_t = (1 - t) x0 + t eps, target eps - x0, t from a logit-normal(.2, 1) (higher mean = more noise); mean squared error.
One batch in twenty has the 256 zero T5 tokens of the pipeline's default call, so that the denoiser is robust to them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from impasto.bases.embedded import ZERO_WIDTH
from impasto.pretrain.base import Latents
from impasto.pretrain.clip import WIDTH

TEXT = WIDTH + ZERO_WIDTH
SHIFT = 1.0


class MMDiT(Latents):
    """See `base.Denoiser`. A shape is (layers, heads of 64)."""

    part = "transformer"
    architecture = "SD3Transformer2DModel, rectified flow"
    call: Mapping[str, Any] = {"max_sequence_length": 1}
    sizes: Mapping[str, tuple[int, ...]] = {"small": (6, 3), "medium": (8, 4)}  # 7.8M, 18.7M parameters
    long_text = True

    def new(self, shape: tuple[int, ...]) -> SD3Transformer2DModel:
        """Latents in patches of 2: 64 image tokens; positions up to 512 px."""
        layers, heads = shape
        return SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=64,
            num_attention_heads=heads,
            joint_attention_dim=TEXT,
            caption_projection_dim=64 * heads,
            pooled_projection_dim=TEXT,
            pos_embed_max_size=32,
            qk_norm="rms_norm",
        )

    def shape(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return (config["num_layers"], config["num_attention_heads"])

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler steps with a shift of 1: 64 tokens need no time shift."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)

    def matrices(self, model: Any) -> list[nn.Parameter]:
        return [p for p in model.transformer_blocks.parameters() if p.ndim == 2]

    def text(self, tower: CLIPTextModelWithProjection, ids: Tensor, long: bool = False) -> dict[str, Tensor]:
        """Tokens [n, 32 + (256 or 1), 200] and pooled [n, 200]: the hidden states before the last layer, then zeros."""
        out = tower(input_ids=ids.long(), output_hidden_states=True)
        hidden: Any = out.hidden_states
        pad = torch.nn.functional.pad
        return {
            "encoder_hidden_states": pad(hidden[-2], (0, ZERO_WIDTH, 0, 256 if long else 1)),
            "pooled_projections": pad(out.text_embeds, (0, ZERO_WIDTH)),
        }

    def levels(self, z: Tensor) -> Tensor:
        return torch.sigmoid(0.2 + z)

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """v(x_t, t, c); t [n] in (0, 1), passed to the model as 1000 t."""
        return model(hidden_states=x_t, timestep=1000 * t, return_dict=False, **cond)[0]

    def loss(
        self,
        model: Any,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        teacher_targets: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """mean |v(x_t, t, c) - (eps - x0)|^2, with x0 and eps of the target from `teacher_targets` if given."""
        t_ = t[:, None, None, None]
        v = self.predict(model, (1 - t_) * x0 + t_ * eps, t, cond)
        x0, eps = teacher_targets or (x0, eps)
        return (v.float() - (eps - x0)).pow(2).mean()
