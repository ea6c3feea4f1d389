"""SD1.x, SD2.x and mini-sd15: a U-Net conditioned by one CLIP.

Reference: Rombach et al. 2022, arXiv 2112.10752; diffusers' StableDiffusionPipeline, whose own code encodes the text.
A folder's safety checker is not loaded.
"""

from typing import Any

import torch
from torch import Tensor

from impasto.families.base import Condition
from impasto.families.unet import UNet

LEFT_OUT = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
}
IN_CALLBACK = {"prompt_embeds": "prompt_embeds"}


class SD15(UNet):
    """See `families.base.Family`. Conditions: text (B, L, D), L = 77 for OpenAI's CLIP."""

    pipeline_class = "StableDiffusionPipeline"
    encoder_parts = ("text_encoder", "tokenizer")
    left_out = LEFT_OUT
    callback_tensors = IN_CALLBACK

    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        text, _ = pipe.encode_prompt(prompts, torch.device(device), 1, False)
        return {"text": text}

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        return self.denoise(z_t, lam, cond["text"])

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Tensor]:
        return self.embeddings(cond, negative, {"text": "prompt_embeds"})
