"""SD3, SD3.5 and mini-sd3: an MM-DiT that predicts the velocity `eps - x_0` of a rectified flow.

Reference: Esser et al. 2024, arXiv 2403.03206; diffusers' StableDiffusion3Pipeline, whose own code encodes the text.
"""

import gc
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impasto.families import folder_hash
from impasto.families.base import Condition, quiet, warn_if_cut
from impasto.noise.schedule import RectifiedFlow

IMAGE_STREAM = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
KINDS = {"attention": IMAGE_STREAM + TEXT_STREAM, "image_stream": IMAGE_STREAM, "text_stream": TEXT_STREAM}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SD3:
    """See `families.base.Family`. Conditions: text (B, 77 or so + T5 length, D) and pooled (B, P)."""

    part = "transformer"
    kinds = tuple(KINDS)
    encoder_parts = ENCODERS
    schedule = RectifiedFlow(scale=1000.0)

    def __init__(self, folder: Path, card: Mapping[str, Any], device: str, precision: str) -> None:
        self.folder, self.card, self.device, self.precision = folder, card, device, precision
        self.dtype = DTYPES[precision]
        self.text_lengths = {int(length): float(share) for length, share in card["text_lengths"].items()}

    @classmethod
    def load(cls, folder: Path, card: Mapping[str, Any], *, device: str, precision: str) -> "SD3":
        return cls(folder, card, device, precision)

    @cached_property
    def hash(self) -> str:
        return folder_hash(self.folder)

    @cached_property
    def denoiser(self) -> Any:
        """The SD3Transformer2DModel, frozen: only what an adapter adds will be trained."""
        from diffusers import SD3Transformer2DModel

        model: Any = SD3Transformer2DModel.from_pretrained(self.folder, subfolder="transformer", dtype=self.dtype)
        return model.requires_grad_(False).eval().to(self.device)

    @cached_property
    def vae(self) -> Any:
        """In float32 whatever the precision: it is used once per picture."""
        from diffusers import AutoencoderKL

        vae: Any = AutoencoderKL.from_pretrained(self.folder, subfolder="vae", dtype=torch.float32)
        return vae.requires_grad_(False).eval().to(self.device)

    @cached_property
    def encoders(self) -> Any:
        """A pipeline of the text encoders alone; one without a T5 asks the transformer how wide its zeros are."""
        transformer = self.denoiser if "text_encoder_3" in self.absent else None
        return self.pipeline(transformer=transformer, vae=None, scheduler=None)

    @cached_property
    def absent(self) -> dict[str, None]:
        """Text encoders that this folder does without."""
        index = json.loads((self.folder / "model_index.json").read_text())
        return {name: None for name in ENCODERS if index.get(name, [None])[0] is None}

    def pipeline(self, **parts: Any) -> Any:
        from diffusers import StableDiffusion3Pipeline

        with quiet():
            pipe = StableDiffusion3Pipeline.from_pretrained(self.folder, dtype=self.dtype, **(self.absent | parts))
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self.device)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """`(mean - shift) * scale`: the posterior's mean, not a draw: what is cached is the picture's own."""
        config = self.vae.config
        mean = self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist.mode()
        return (mean - config.shift_factor) * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        return self.vae.decode(latents.float() / config.scaling_factor + config.shift_factor, return_dict=False)[0]

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], length: int | None = None, pipe: Any = None) -> Condition:
        """By the pipeline's own code. pipe: one that is loaded already, with its adapters."""
        pipe = pipe or self.encoders
        with quiet():
            for prompt in prompts:
                warn_if_cut(prompt, pipe.tokenizer)
            text, _, pooled, _ = pipe.encode_prompt(
                list(prompts),
                None,
                None,
                do_classifier_free_guidance=False,
                max_sequence_length=length or next(iter(self.text_lengths)),
                device=torch.device(self.device),
            )
        return {"text": text, "pooled": pooled}

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        return self.denoiser(
            hidden_states=z_t.to(self.dtype),
            timestep=self.schedule.timestep(lam),
            encoder_hidden_states=cond["text"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
        )[0]

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        return eps - x

    def modules(self, kind: str) -> tuple[str, ...]:
        return KINDS[kind]

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Tensor]:
        call = {"prompt_embeds": cond["text"], "pooled_prompt_embeds": cond["pooled"]}
        if negative is not None:
            call |= {"negative_prompt_embeds": negative["text"], "negative_pooled_prompt_embeds": negative["pooled"]}
        return {name: t.to(self.device, self.dtype) for name, t in call.items()}

    def save_adapter(self, file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        from diffusers import StableDiffusion3Pipeline

        StableDiffusion3Pipeline.save_lora_weights(
            file.parent,
            transformer_lora_layers=dict(tensors),
            transformer_lora_adapter_metadata=dict(metadata),
            weight_name=file.name,
        )

    def free(self, *parts: str) -> None:
        for part in parts:
            self.__dict__.pop(part, None)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
