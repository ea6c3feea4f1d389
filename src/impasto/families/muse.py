"""Muse: a transformer that predicts masked image tokens; aMUSEd and mini-muse.

An image is h x w token ids of a VQ codebook; noise replaces some by the mask token, and the denoiser predicts logits of
all codes at every place. The mask ratio m is the noise level, `noise.schedule.MaskRatio`; the denoiser does not
receive it.
References: Chang et al. 2023 (Muse), arXiv 2301.00704; Patil et al. 2024 (aMUSEd), arXiv 2401.01808, whose weights
diffusers holds as `UVit2DModel`, `VQModel` and `AmusedScheduler`. Its pipeline is deprecated, so `MusePipeline` here
samples. A step is that of `AmusedScheduler`, but for `draw_tokens` in place of `torch.multinomial`, which takes a
random number per place and code: half of the time of an image of mini-muse on a CPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import SD3LoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.schedulers.scheduling_amused import mask_by_random_topk
from torch import Tensor
from torch.nn.functional import cross_entropy

from impasto.errors import UserError
from impasto.families.base import Condition, MakeScheduler
from impasto.families.pipeline import DiffusersFolder
from impasto.noise.schedule import MaskRatio

AESTHETIC = 6.0
"""The aesthetic score in the micro-conditions, aMUSEd's default."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
KINDS = {
    "attention": ATTENTION,
    "self_attention": tuple(f"attn1.{name}" for name in ATTENTION),
    "cross_attention": tuple(f"attn2.{name}" for name in ATTENTION),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
}
OF_MAIN_LAYERS = {
    "cross_attention_kv": ("attn2.to_k", "attn2.to_v"),
    "cross_attention_q": ("attn2.to_q",),
    "cross_attention_out": ("attn2.to_out.0",),
    "mlp_out": ("ff.net.2",),
}
"""Kinds of layers of the transformer layers alone, without the attention of the convolutional blocks around them."""


class MusePipeline(SD3LoraLoaderMixin, TextualInversionLoaderMixin, DiffusionPipeline):
    """Samples images from an aMUSEd folder. Components as in diffusers' `AmusedPipeline`."""

    model_cpu_offload_seq = "text_encoder->transformer->vqvae"
    _lora_loadable_modules: ClassVar[list[str]] = ["transformer", "text_encoder"]

    def __init__(self, vqvae: Any, tokenizer: Any, text_encoder: Any, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            vqvae=vqvae, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(do_normalize=False)

    def load_lora_weights(self, source: Any, adapter_name: str | None = None, **kwargs: Any) -> None:
        """As other pipelines have it; weights of the transformer and of the text encoder."""
        state, metadata = self.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        given: dict[str, Any] = {"adapter_name": adapter_name, "metadata": metadata, "_pipeline": self}
        self.load_lora_into_transformer(state, transformer=self.transformer, **given)
        self.load_lora_into_text_encoder(
            state, None, self.text_encoder, self.text_encoder_name, lora_scale=self.lora_scale, **given
        )

    def encode_prompt(self, prompts: Sequence[str], device: Any = None) -> tuple[Tensor, Tensor]:
        """(hidden states before the last layer [n, L, D], projected pooled state [n, P])."""
        device = device or self._execution_device
        texts = self.maybe_convert_prompt(list(prompts), self.tokenizer)
        ids = self.tokenizer(
            texts,
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
        ).input_ids
        out = self.text_encoder(ids.to(device), return_dict=True, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int,
        width: int,
        num_inference_steps: int = 12,
        guidance_scale: float = 10.0,
        temperature: float | tuple[float, float] = (2.0, 0.0),
        token_temperature: float = 1.0,
        generator: Sequence[torch.Generator] | torch.Generator | None = None,
        encoder_hidden_states: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], Any] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Images of prompts, or of their embeddings (names as in `AmusedPipeline`: prompt_embeds is the pooled state).

        Starting from mask tokens, every step draws a token for each masked place from the softmax of the logits and
        masks the least certain ones again, by the scheduler. guidance_scale w > 1: logits n + w (p - n) of negative
        prompt and prompt. temperature T: a place's certainty is log p + T_i gumbel, T_i falling linearly over the
        steps from T to .01, or between the two numbers of a pair. token_temperature: tokens are drawn from the softmax
        of the logits over it, 1 as in `AmusedPipeline`; 0 takes the most probable ones. generator: one per image, so
        that an image does not depend on its batch; a single one serves all in turn. callback_on_step_end: as in
        diffusers, called without tensors. output_type "latent": token ids [n, 1, h, w].
        """
        if encoder_hidden_states is None or prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
            encoder_hidden_states, prompt_embeds = self.encode_prompt(prompts)
            if negative_encoder_hidden_states is None:
                no = negative_prompt or ""
                negatives = [no] * len(prompts) if isinstance(no, str) else list(no)
                negative_encoder_hidden_states, negative_prompt_embeds = self.encode_prompt(negatives)
        n = len(prompt_embeds)
        guided = guidance_scale > 1
        text, pooled = encoder_hidden_states, prompt_embeds
        if guided:
            assert negative_encoder_hidden_states is not None and negative_prompt_embeds is not None
            text = torch.cat([negative_encoder_hidden_states, text])
            pooled = torch.cat([negative_prompt_embeds, pooled])
        device = self._execution_device
        factor = 2 ** (len(self.vqvae.config.block_out_channels) - 1)
        micro = micro_conditions(len(text), height, width).to(device, text.dtype)
        ids = torch.full(
            (n, height // factor, width // factor), self.scheduler.config.mask_token_id, dtype=torch.long, device=device
        )
        each = list(generator) if isinstance(generator, Sequence) else [generator] * n
        self.scheduler.set_timesteps(num_inference_steps, temperature, device)
        for step, t in enumerate(self.scheduler.timesteps):
            logits = self.transformer(
                torch.cat([ids, ids]) if guided else ids,
                encoder_hidden_states=text,
                pooled_text_emb=pooled,
                micro_conds=micro,
            )
            logits = logits if isinstance(logits, Tensor) else logits[0]
            if guided:
                negative, logits = logits.chunk(2)
                logits = torch.lerp(negative, logits, guidance_scale)
            ids = torch.cat(
                [
                    step_tokens(self.scheduler, logits[i : i + 1], step, ids[i : i + 1], each[i], token_temperature)
                    for i in range(n)
                ]
            )
            if callback_on_step_end:
                callback_on_step_end(self, step, t, {})
        if output_type == "latent":
            images: Any = ids[:, None]
        else:
            pixels = decode_ids(self.vqvae, ids).clamp(0, 1)
            images = self.image_processor.postprocess(pixels, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)


def draw_tokens(probabilities: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
    """Codes [...] of p^(1 / temperature), p the probabilities [..., codes], by the inverse of the cumulative sum at u
    [...] in [0, 1); at temperature 0 the most probable ones."""
    if temperature == 0:
        return probabilities.argmax(-1)
    if temperature != 1:
        probabilities = (probabilities / probabilities.amax(-1, keepdim=True)).pow(1 / temperature)
    sums = probabilities.cumsum(-1)
    found = torch.searchsorted(sums, u[..., None] * sums[..., -1:], right=True)[..., 0]
    return found.clamp(max=probabilities.shape[-1] - 1)


def step_tokens(
    scheduler: Any,
    logits: Tensor,
    step: int,
    ids: Tensor,
    generator: torch.Generator | None,
    token_temperature: float = 1.0,
) -> Tensor:
    """Ids [1, h, w] after one step of `AmusedScheduler`: tokens are drawn at the masked places of `ids`, and the least
    certain of them (by their probability at temperature 1) are masked again. logits: [1, codes, h, w]. A random number
    is drawn for every place."""
    old, mask = ids.flatten(1), scheduler.config.mask_token_id
    masked = old == mask
    u = torch.rand(old.shape, generator=generator, device=ids.device if generator is None else generator.device)
    probabilities = logits.flatten(2)[0, :, masked[0]].T.float().softmax(-1)  # [masked places, codes]
    codes = draw_tokens(probabilities, u.to(ids.device)[masked], token_temperature)
    drawn = old.masked_scatter(masked, codes)
    last = len(scheduler.timesteps) - 1
    if step < last:
        share = (step + 1) / (last + 1)
        linear = scheduler.config.masking_schedule == "linear"
        ratio = torch.tensor(1 - share if linear else math.cos(share * math.pi / 2), device=ids.device)
        count = (old.shape[1] * ratio).floor().clamp(max=masked.sum(1, keepdim=True) - 1).clamp(min=1)
        certainty = torch.full(old.shape, torch.finfo(torch.float32).max, device=ids.device)
        certainty[masked] = probabilities.gather(1, codes[:, None])[:, 0]
        temperature = scheduler.temperatures[step]
        drawn = torch.where(mask_by_random_topk(count, certainty, temperature, generator), mask, drawn)
    return drawn.view_as(ids)


def micro_conditions(n: int, height: int, width: int) -> Tensor:
    """[n, 5]: width, height, top and left of the crop, aesthetic score, of uncropped images."""
    return torch.tensor([[width, height, 0.0, 0.0, AESTHETIC]]).repeat(n, 1)


def decode_ids(vqvae: Any, ids: Tensor) -> Tensor:
    """Pixels [n, 3, H, W], nominally in [0, 1], of token ids [n, h, w]."""
    shape = (*ids.shape, vqvae.quantize.vq_embed_dim)
    return vqvae.decode(ids.long(), force_not_quantize=True, shape=shape).sample


class Muse(DiffusersFolder):
    """See `families.base.Family`. Latents: token ids (B, 1, h, w), int32. Conditions: text (B, L, D), pooled (B, P)
    and, optionally, size_ids (B, 6) as SDXL's; `predict` returns logits (B, codes, h, w)."""

    pipeline_class, denoiser_class = "AmusedPipeline", "UVit2DModel"
    autoencoder_class, autoencoder_part = "VQModel", "vqvae"
    layers = KINDS | OF_MAIN_LAYERS
    encoder_parts = ("text_encoder", "tokenizer")
    callback_tensors: ClassVar[Mapping[str, str]] = {}
    pooled_argument = "pooled_text_emb"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.check_tokens()

    def check_tokens(self) -> None:
        """Raise UserError unless VQ model, transformer and scheduler have the same codes and a mask token."""
        codes, model = self.config("vqvae")["num_vq_embeddings"], self.config("transformer")
        if codes != model["codebook_size"]:
            raise UserError(
                f"{str(self.folder)!r}: the VQ model has {codes} codes and the transformer {model['codebook_size']}: "
                "take both from one base"
            )
        mask = self.config("scheduler").get("mask_token_id")
        if not isinstance(mask, int) or not codes <= mask < model["vocab_size"]:
            raise UserError(
                f"{str(self.folder)!r} has no mask token: mask_token_id in scheduler/scheduler_config.json must be "
                f"from {codes} to {model['vocab_size'] - 1}, not {mask}"
            )

    @property
    def wants_size_ids(self) -> bool:
        """Embedded bases know one size alone."""
        return not self.card.get("embedded")

    @property
    def patch(self) -> int:
        """Tokens per place of the transformer and side: 2 where its first block halves the resolution."""
        return 2 if self.config("transformer").get("downsample") else 1

    @cached_property
    def text_lengths(self) -> Mapping[int, float]:
        """CLIP's fixed length."""
        return {self.config("text_encoder")["max_position_embeddings"]: 1.0}

    @cached_property
    def schedule(self) -> MaskRatio:
        return MaskRatio(self.config("scheduler")["mask_token_id"])

    @property
    def pipeline_type(self) -> type[MusePipeline]:
        return MusePipeline

    @cached_property
    def denoiser(self) -> Any:
        """See `DiffusersFolder.denoiser`. diffusers' gradient checkpointing of this model fails: it calls layers with
        keywords that its wrapper does not take."""
        model = super().denoiser
        model._supports_gradient_checkpointing = False
        return model

    def modules(self, kind: str) -> tuple[str, ...]:
        """Layers of OF_MAIN_LAYERS by their whole names."""
        if kind not in OF_MAIN_LAYERS:
            return self.layers[kind]
        n = self.config("transformer")["num_hidden_layers"]
        return tuple(f"transformer_layers.{i}.{name}" for i in range(n) for name in OF_MAIN_LAYERS[kind])

    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        text, pooled = pipe.encode_prompt(prompts, torch.device(device))
        return {"text": text, "pooled": pooled}

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Token ids (B, 1, h, w), int32."""
        self.check_pixels(pixels)
        z = self.vae.encode(pixels.to(self.device, torch.float32) / 2 + 0.5).latents
        _, _, (_, _, ids) = self.vae.quantize(z)
        return ids.reshape(len(z), 1, *z.shape[2:]).int()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return decode_ids(self.vae, latents[:, 0]) * 2 - 1

    def micro(self, z_t: Tensor, cond: Condition) -> Tensor:
        """(B, 5): of the size_ids of the condition, else of uncropped images of the size of z_t."""
        if "size_ids" not in cond:
            factor = self.unit // self.patch
            return micro_conditions(len(z_t), z_t.shape[-2] * factor, z_t.shape[-1] * factor).to(z_t.device)
        height, width, top, left = cond["size_ids"].to(z_t.device).unbind(1)[:4]
        return torch.stack([width, height, top, left, torch.full_like(top, AESTHETIC)], 1)

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        """Logits (B, codes, h, w); the level lam is not an input of the model."""
        return self.denoiser(
            z_t[:, 0].long(),
            encoder_hidden_states=cond["text"].to(self.dtype),
            pooled_text_emb=cond["pooled"].to(self.dtype),
            micro_conds=self.micro(z_t, cond).to(self.dtype),
        )

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        raise UserError("a base of masked tokens has no regression target: use --prior.target prediction")

    def error(self, x: Tensor, eps: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        z = self.schedule.add_noise(x, eps, lam)
        loss = cross_entropy(self.predict(z, lam, cond).float(), x[:, 0].long(), reduction="none")
        masked = (z != x)[:, 0]
        return (loss * masked).sum((1, 2)) / masked.sum((1, 2))

    def sampling_levels(self, steps: int, size: tuple[int, int], make: MakeScheduler | None = None) -> Tensor:
        """The mask ratios floor(N cos(pi i / 2 steps)) / N at the calls i = 0..steps - 1 (linear: 1 - i / steps), of N
        tokens; -inf at the first, where all are masked."""
        i, n = torch.arange(steps, dtype=torch.float64) / steps, size[0] * size[1]
        linear = self.config("scheduler").get("masking_schedule") == "linear"
        m = (n * (1 - i if linear else torch.cos(i * math.pi / 2))).floor().clamp(min=1) / n
        return self.schedule.log_snr(m)

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Any]:
        return self.embeddings(cond, negative, {"text": "encoder_hidden_states", "pooled": "prompt_embeds"})
