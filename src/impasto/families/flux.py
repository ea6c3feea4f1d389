"""FLUX.1 dev and schnell: a transformer that predicts the velocity `eps - x_0` of a rectified flow.

Reference: Black Forest Labs 2024 (github.com/black-forest-labs/flux); diffusers' FluxPipeline, whose own code encodes
the text. Latents are packed: a token is 2 x 2 of them, at (row, column) of the rotary embedding; text sits at (0, 0).
dev is guidance-distilled: it takes the scale as an input, 1 in training (Style-Friendly SNR sampler, appendix A.4: the
unguided velocity is fitted), the card's in sampling. schnell has no such input.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impasto.families.base import Condition
from impasto.families.pipeline import DiffusersFolder, dynamic_shift
from impasto.noise.schedule import RectifiedFlow

IMAGE_STREAM = ("to_q", "to_k", "to_v", "to_out.0")  # in the single blocks to_q, to_k and to_v are of both streams
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
KINDS = {
    "attention": (*IMAGE_STREAM, *TEXT_STREAM[:3], "proj_mlp", "proj_out"),  # the paper's list, figure S3
    "image_stream": IMAGE_STREAM,
    "text_stream": TEXT_STREAM,
    "single_mlp": ("proj_mlp", "proj_out"),
    "cross_attention_kv": TEXT_STREAM[1:3],
    "cross_attention_q": ("attn.to_q",),
    "cross_attention_out": ("attn.to_out.0",),
    "mlp_out": ("ff.net.2",),
}
TRAINING_GUIDANCE = 1.0
IN_CALLBACK = {"prompt_embeds": "prompt_embeds"}
IN_DENOISER = {"pooled_prompt_embeds": "pooled_projections"}  # no callback of this pipeline reaches the pooled text


class Flux(DiffusersFolder):
    """See `families.base.Family`. Conditions: text (B, T5 length, D), pooled (B, P), and, where the guidance that is an
    input is not that of training, guidance (B,).

    Latents are mixed in float32; the transformer rounds t to its own precision, as in the pipeline.
    """

    pipeline_class, denoiser_class = "FluxPipeline", "FluxTransformer2DModel"
    layers = KINDS
    encoder_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    main_tokenizer, padded_to_length = "tokenizer_2", True  # T5: CLIP's pooled vector sees 77 tokens only
    patch = 2
    time_scale = 1 / 1000
    schedule = RectifiedFlow()
    callback_tensors = IN_CALLBACK
    denoiser_inputs = IN_DENOISER
    image_attention = ("attn",)
    text_first = True

    @cached_property
    def guided(self) -> bool:
        """Whether the transformer takes a guidance scale (dev)."""
        return bool(self.config("transformer").get("guidance_embeds", False))

    @property
    def guided_by(self) -> str:
        return "embedding" if self.guided else "nothing"

    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        text, pooled, _ = pipe.encode_prompt(prompts, device=torch.device(device), max_sequence_length=length)
        return {"text": text, "pooled": pooled}

    def embed_clip(self, prompts: Sequence[str], cond: Condition, pipe: Any = None) -> Condition:
        """CLIP gives the pooled vector only (see `FluxPipeline._get_clip_prompt_embeds`); the text is T5's."""
        pipe = pipe or self.clip
        tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
        room, written = pipe.tokenizer_max_length, pipe.maybe_convert_prompt(list(prompts), tokenizer)
        tokens = tokenizer(written, padding="max_length", max_length=room, truncation=True, return_tensors="pt")
        return cond | {"pooled": encoder(tokens.input_ids.to(self.device)).pooler_output.to(self.dtype)}

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        n, _, height, width = z_t.shape
        velocity = self.denoiser(
            hidden_states=pack(z_t).to(self.dtype),
            timestep=self.schedule.timestep(lam),
            guidance=cond.get("guidance", torch.full((n,), TRAINING_GUIDANCE, device=z_t.device))
            if self.guided
            else None,
            encoder_hidden_states=cond["text"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            txt_ids=torch.zeros(cond["text"].shape[1], 3, device=z_t.device),
            img_ids=positions(height // 2, width // 2).to(z_t.device),
            return_dict=False,
        )[0]
        return unpack(velocity, height, width)

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        return eps - x

    def unpack(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = (side // self.unit * 2 for side in size)
        return unpack(latents, height, width)

    def pack(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def scheduler_arguments(self, scheduler: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": dynamic_shift(scheduler, tokens)}

    def padding(self, length: int) -> dict[str, int]:
        return {"max_sequence_length": length}

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Tensor]:
        """`negative` is ignored: FLUX takes the scale as an input."""
        return self.embeddings(cond, None, {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"})


def pack(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C): channel slowest, then row and column within the 2 x 2."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def positions(rows: int, columns: int) -> Tensor:
    """(rows columns, 3): (0, row, column) of each token."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).float()
