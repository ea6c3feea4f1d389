"""SD3, SD3.5 and mini-sd3: an MM-DiT that predicts the velocity `eps - x_0` of a rectified flow.

Reference: Esser et al. 2024, arXiv 2403.03206; diffusers' StableDiffusion3Pipeline, whose own code encodes the text.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from impasto.families.base import Condition, quiet
from impasto.families.pipeline import DiffusersFolder, dynamic_shift
from impasto.noise.schedule import RectifiedFlow

IMAGE_STREAM = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
KINDS = {
    "attention": IMAGE_STREAM + TEXT_STREAM,
    "image_stream": IMAGE_STREAM,
    "text_stream": TEXT_STREAM,
    "cross_attention_kv": TEXT_STREAM[1:3],
    "cross_attention_q": ("attn.to_q",),
    "cross_attention_out": ("attn.to_out.0",),
    "mlp_out": ("ff.net.2",),
}
IN_CALLBACK = {"prompt_embeds": "prompt_embeds", "pooled_prompt_embeds": "pooled_prompt_embeds"}


class SD3(DiffusersFolder):
    """See `families.base.Family`. Conditions: text (B, CLIP length + T5 length, D) and pooled (B, P)."""

    pipeline_class, denoiser_class = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
    layers = KINDS
    clips = ("text_encoder", "text_encoder_2")
    encoder_parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    schedule = RectifiedFlow(scale=1000.0)
    callback_tensors = IN_CALLBACK
    image_attention = ("attn", "attn2")  # attn2: a second attention over image tokens alone, in blocks of SD3.5 medium

    @property
    def patch(self) -> int:
        return self.config("transformer")["patch_size"]

    def with_transformer_config(self, pipe: Any) -> Any:
        """`pipe` with a stand-in for a missing transformer: without T5, its config gives the width of T5's zeros."""
        if pipe.transformer is None:
            pipe.transformer = SimpleNamespace(config=SimpleNamespace(**self.config("transformer")))
        return pipe

    @cached_property
    def encoders(self) -> Any:
        """See `DiffusersFolder.encoders`."""
        return self.with_transformer_config(super().encoders)

    def prompt_tokenizer(self, pipe: Any, length: int) -> tuple[Any, int | None]:
        """T5's, if it keeps more tokens than the CLIPs'; that of an embedded base is empty."""
        if pipe.tokenizer_3 is None or self.card.get("embedded") or length <= pipe.tokenizer.model_max_length:
            return super().prompt_tokenizer(pipe, length)
        return pipe.tokenizer_3, length

    def text_tokens(self) -> list[tuple[Any, int, int]]:
        """CLIP's rows come first, T5's behind them; an embedded base's T5 reads nothing."""
        clip = self.encoders.tokenizer_max_length
        found = [(self.encoders.tokenizer, 0, clip)]
        if self.encoders.tokenizer_3 is not None and not self.card.get("embedded"):
            found.append((self.encoders.tokenizer_3, clip, next(iter(self.text_lengths))))
        return found

    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        from diffusers.loaders import TextualInversionLoaderMixin

        written: Any = TextualInversionLoaderMixin._maybe_convert_prompt  # learned tokens, which this pipeline lacks
        text, _, pooled, _ = pipe.encode_prompt(
            [written(pipe, prompt, pipe.tokenizer) for prompt in prompts],
            None,
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            device=torch.device(device),
        )
        return {"text": text, "pooled": pooled}

    @cached_property
    def clip(self) -> Any:
        """See `DiffusersFolder.clip`."""
        return self.with_transformer_config(super().clip)

    def embed_clip(self, prompts: Sequence[str], cond: Condition, pipe: Any = None) -> Condition:
        """CLIP's tokens come first; T5's after them are those of `cond`."""
        pipe = pipe or self.clip
        rows = pipe.tokenizer_max_length
        with quiet():  # truncation was warned about when `cond` was made
            own = self.embed(pipe, list(prompts), cond["text"].shape[1] - rows, self.device)
        text = torch.cat([own["text"][:, :rows], cond["text"][:, rows:].to(own["text"])], dim=1)
        return cond | {"text": text, "pooled": own["pooled"]}

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

    def scheduler_arguments(self, scheduler: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
        return {"mu": dynamic_shift(scheduler, tokens)} if scheduler.get("use_dynamic_shifting") else {}

    def padding(self, length: int) -> dict[str, int]:
        return {"max_sequence_length": length}

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Tensor]:
        return self.embeddings(cond, negative, {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"})
