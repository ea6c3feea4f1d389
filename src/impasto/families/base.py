"""The family contract: all that a method may know of a base model.

A family is one architecture (SD3, FLUX, ...), loaded from any diffusers folder. Packing, timesteps, VAE shift and
scale, text encoders and the kind of prediction stay inside; a method sees latents, log-SNRs and conditions.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.noise.schedule import Schedule

Condition = dict[str, Tensor]
"""What the denoiser is told beside the level: named tensors whose first dimension is the item."""


class Family(Protocol):
    """One base model. `denoiser` carries the adapters; everything else is frozen, loaded when first used.

    folder: the diffusers folder. hash: sha256 over its weights and configs. card: its entry of `cards.toml`.
    kinds: the kinds of layers that `modules` knows. dtype: what the frozen denoiser's weights are in, by `precision`.
    part: the pipeline's component that is trained, also the key prefix in saved files ("transformer" or "unet").
    encoder_parts: the pipeline's components that read text. clip_parts: those of its encoders that can be trained.
    clip: a pipeline of these alone, there once it was used: it carries their adapters.
    text_lengths: the ways in which a prompt is padded, each with its share of the training batches; the first is the
    one that `generate` uses.
    unit: heights and widths in pixels are multiples of it, `largest` at most if that is no None. patch: latents per
    token and side.
    wants_size_ids: True where conditions shall hold size and crop of the picture, "size_ids" (B, 6); may be missing.
    image_attention: names of the attention layers in which image tokens attend to each other. text_first: whether text
    tokens, where they are among them, come before the image's.
    guided_by: what the guidance scale works through: a "negative" prompt, an "embedding" of the scale, or "nothing".
    callback_tensors: what `callback_on_step_end` calls the tensors of `call_arguments` that it can change.
    denoiser_inputs: what the denoiser calls those that it cannot.
    """

    folder: Path
    hash: str
    card: Mapping[str, Any]
    kinds: tuple[str, ...]
    part: str
    encoder_parts: tuple[str, ...]
    clip_parts: tuple[str, ...]
    clip: Any
    schedule: Schedule
    text_lengths: Mapping[int, float]
    device: str
    precision: str
    dtype: torch.dtype
    denoiser: Any
    unit: int
    largest: int | None
    patch: int
    image_attention: tuple[str, ...]
    text_first: bool
    guided_by: str
    callback_tensors: Mapping[str, str]
    denoiser_inputs: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path, card: Mapping[str, Any], *, device: str, precision: str) -> "Family":
        """Nothing is read from disk but the configs until a part is used."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), float32, in the units that `predict` sees."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The way back: latents (B, C, h, w) -> pixels (B, 3, H, W), nominally in [-1, 1]."""
        ...

    def unpack(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """What the pipeline returns for output_type "latent", of pictures of (height, width), as (B, C, h, w)."""
        ...

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the denoiser itself takes them."""
        ...

    def sampling_levels(self, steps: int, size: tuple[int, int]) -> Tensor:
        """log-SNR of each call of the denoiser when the pipeline draws latents of `size` (h, w) in so many steps, by
        the folder's scheduler with its time shift: the noisiest first, float64."""
        ...

    def encode_prompt(self, prompts: Sequence[str], length: int | None = None, pipe: Any = None) -> Condition:
        """One row per prompt. length: one of `text_lengths`, the first by default. pipe: one that is loaded already."""
        ...

    def text_tokens(self) -> list[tuple[Any, int, int]]:
        """(tokeniser, first row, rows) of each part of a condition's "text", whose rows are its tokens in order."""
        ...

    def embed_clip(self, prompts: Sequence[str], cond: Condition) -> Condition:
        """`cond`, one row per prompt, with what the CLIPs of `clip` say now, with gradient; T5's part stays."""
        ...

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        """The denoiser's output for z_t (B, C, h, w) at log-SNR lam (B,): eps, v, velocity or logits, as `target`."""
        ...

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        """What `predict` should have returned for `z_t = alpha x + sigma eps`."""
        ...

    def modules(self, kind: str) -> tuple[str, ...]:
        """Name endings of the layers of a kind ("attention", "text_stream", "image_stream", ...), one of `kinds`."""
        ...

    def pipeline(self, **parts: Any) -> Any:
        """The ordinary diffusers pipeline of this base; `parts` replace components (None leaves one out)."""
        ...

    def padding(self, length: int) -> dict[str, int]:
        """What the pipeline's call is told to pad prompts to `length`."""
        ...

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Any]:
        """What the pipeline's call takes instead of a prompt and a negative prompt."""
        ...

    def save_adapter(self, file: Path, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        """Write plain LoRAs, {component: (tensors, configuration)}, by the pipeline's own `save_lora_weights`."""
        ...

    def free(self, *parts: str) -> None:
        """Drop "encoders" and/or "vae" from memory; they come back when used again."""
        ...


def part_bytes(pipe: Any) -> list[int]:
    """Bytes of the weights of each part of a pipeline."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [sum(t.nbytes for t in (*part.parameters(), *part.buffers())) for part in parts]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notices of diffusers and transformers: what a user must know, impasto says itself."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers, transformers)]
    try:
        for log, _, _ in before:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, verbosity, bar in before:
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()


def warn_if_cut(prompt: str, tokenizer: Any, length: int | None = None) -> None:
    """Warn when a prompt is longer than its encoder reads, by default the tokeniser's own length: what is cut is the
    end, often the style."""
    length = int(length or tokenizer.model_max_length)
    ids = tokenizer(prompt).input_ids
    if len(ids) > length:
        kept = tokenizer.decode(ids[: length - 1], skip_special_tokens=True)
        warnings.warn(f"the prompt is too long for the text encoder, which reads only {kept!r}", stacklevel=2)


def check_multiple(size: int | None, unit: int, name: str = "size") -> None:
    """Raise UserError unless the size, of that name, is a whole number of a model's patches, of `unit` pixels."""
    if size is None or size < unit or size % unit:
        raise UserError(f"{name} must be a multiple of {unit} for this base, not {size}")


def check_size(size: int | None, family: Family, name: str = "size") -> None:
    """Raise UserError unless the size, of that name, is a whole number of the model's patches, and within its
    positions."""
    check_multiple(size, family.unit, name)
    if family.largest and size and size > family.largest:
        raise UserError(f"{name} must be at most {family.largest} for this base, not {size}: its positions end there")
