"""SDXL: a U-Net conditioned by two CLIPs and by the size and crop of the image.

Reference: Podell et al. 2023, arXiv 2307.01952, section 2.2; diffusers' StableDiffusionXLPipeline, whose own code
encodes the text. With the folder's `force_zeros_for_empty_prompt` an empty prompt is encoded as zeros, like the
pipeline's missing negative prompt.
"""

from typing import Any

import torch
from torch import Tensor

from impasto.families.base import Condition
from impasto.families.unet import UNet

IN_CALLBACK = {"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "add_text_embeds"}


class SDXL(UNet):
    """See `families.base.Family`. Conditions: text (B, L, D1 + D2), pooled (B, D2) and, optionally, size_ids (B, 6):
    height and width of the original, top and left of the crop, height and width of the crop."""

    wants_size_ids = True
    main_tokenizer = "tokenizer_2"
    clips = ("text_encoder", "text_encoder_2")
    pipeline_class = "StableDiffusionXLPipeline"
    encoder_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    callback_tensors = IN_CALLBACK

    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        text, _, pooled, _ = pipe.encode_prompt(prompts, None, torch.device(device), 1, False)
        if self.index.get("force_zeros_for_empty_prompt", True):
            filled = torch.tensor([prompt != "" for prompt in prompts], device=text.device)
            text, pooled = text * filled[:, None, None], pooled * filled[:, None]
        return {"text": text, "pooled": pooled}

    def size_ids(self, z_t: Tensor) -> Tensor:
        """(B, 6) of uncropped images of the size of z_t, the pipeline's default."""
        height, width = (side * self.unit for side in z_t.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(len(z_t), 1)

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        ids = cond["size_ids"] if "size_ids" in cond else self.size_ids(z_t)
        added = {"text_embeds": cond["pooled"].to(self.dtype), "time_ids": ids.to(z_t.device)}
        return self.denoise(z_t, lam, cond["text"], added_cond_kwargs=added)

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Tensor]:
        return self.embeddings(cond, negative, {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"})
