"""The family protocol: the interface between methods and base models.

A family is one architecture (SD3, FLUX, ...), loaded from a diffusers folder. It hides packing, timesteps, VAE shift
and scale, text encoders and the prediction type; a method sees latents, log-SNRs and conditions.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.noise.schedule import Schedule

Condition = dict[str, Tensor]
"""The denoiser's inputs beside latents and noise level: named tensors whose first dimension is the item."""

MakeScheduler = Callable[[Mapping[str, Any]], Any]
"""Configuration of a base's own diffusers scheduler -> the scheduler to sample with."""


class Family(Protocol):
    """One base model. `denoiser` carries the adapters; everything else is frozen and loaded on first use.

    `wants_size_ids`, True if conditions take "size_ids" (B, 6), image size and crop, may be missing.

    Attributes:
        folder: The diffusers folder.
        hash: sha256 over its weights and configs.
        card: Its entry of `cards.toml`.
        kinds: The layer kinds accepted by `modules`.
        part: The pipeline component that is trained, also the key prefix in saved files ("transformer" or "unet").
        encoder_parts: The components that encode text.
        clip_parts: The text encoders that can be trained.
        clip: A pipeline of the CLIPs alone, created on first use; carries their adapters.
        schedule: Time to log-SNR.
        text_lengths: Prompt lengths in tokens with their shares of the training batches; `generate` uses the first.
        device: Of the denoiser.
        precision: "fp32" or "bf16".
        dtype: Of the frozen denoiser's weights, set by `precision`.
        denoiser: The frozen model that predicts.
        unit: Heights and widths in pixels are multiples of it.
        largest: Maximum height and width, None: unlimited.
        patch: Latents per token and side.
        image_attention: Names of the attention layers in which image tokens attend to each other.
        text_first: Whether text tokens precede image tokens in them.
        guided_by: How guidance is applied: a "negative" prompt, an "embedding" of the scale, or "nothing".
        callback_tensors: Names of `call_arguments` -> their names in `callback_on_step_end`, where it can change them.
        denoiser_inputs: Names of the others -> the denoiser's argument names.
        autoencoder_part: The component that encodes images.
        pooled_argument: The transformer's argument of the pooled text.
        pipeline_type: The class of `pipeline()`.
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
    autoencoder_part: str
    pooled_argument: str
    pipeline_type: Any

    @classmethod
    def load(cls, folder: Path, card: Mapping[str, Any], *, device: str, precision: str) -> "Family":
        """Reads configurations only; weights are read when a component is first used."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), float32, scaled as `predict` takes them; token ids
        (B, 1, h, w), int32, where the schedule is `masked`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> pixels (B, 3, H, W), nominally in [-1, 1]."""
        ...

    def unpack(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """The pipeline's output for output_type "latent" and images of `size` (height, width) -> (B, C, h, w)."""
        ...

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) in the denoiser's own layout."""
        ...

    def sampling_levels(self, steps: int, size: tuple[int, int], make: MakeScheduler | None = None) -> Tensor:
        """log-SNR (steps,), float64, noisiest first, of the denoiser's calls when the pipeline generates latents of
        `size` (h, w), by the folder's scheduler with its time shift, or by the one that `make` makes."""
        ...

    def encode_prompt(self, prompts: Sequence[str], length: int | None = None, pipe: Any = None) -> Condition:
        """One row per prompt. length: one of `text_lengths`, the first by default. pipe: a loaded pipeline to use."""
        ...

    def text_tokens(self) -> list[tuple[Any, int, int]]:
        """(tokeniser, first row, rows) of each part of a condition's "text", whose rows are its tokens in order."""
        ...

    def embed_clip(self, prompts: Sequence[str], cond: Condition, pipe: Any = None) -> Condition:
        """`cond`, one row per prompt, with the CLIPs' part re-encoded by `clip` (by the encoders of `pipe`, where it is
        given), with gradient; T5's part is kept."""
        ...

    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        """The denoiser's output for z_t (B, C, h, w) at log-SNR lam (B,): eps, v, velocity or logits, as `target`."""
        ...

    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        """The regression target of `predict` for `z_t = alpha x + sigma eps`."""
        ...

    def error(self, x: Tensor, eps: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        """(B,): mean squared error of the prediction for latents x with noise eps at log-SNR lam; mean cross-entropy of
        the masked tokens where the schedule is `masked`."""
        ...

    def modules(self, kind: str) -> tuple[str, ...]:
        """Name suffixes of the layers of a kind, one of `kinds` ("attention", "text_stream", "image_stream", ...)."""
        ...

    def pipeline(self, **parts: Any) -> Any:
        """The diffusers pipeline of this base; `parts` replace components (None: without it)."""
        ...

    def padding(self, length: int) -> dict[str, int]:
        """Call arguments of the pipeline that pad prompts to `length`."""
        ...

    def call_arguments(self, cond: Condition, negative: Condition | None) -> dict[str, Any]:
        """Call arguments of the pipeline that replace prompt and negative prompt."""
        ...

    def save_adapter(self, file: Path, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        """Write plain LoRAs, {component: (tensors, configuration)}, by the pipeline's own `save_lora_weights`."""
        ...

    def free(self, *parts: str) -> None:
        """Drop "encoders" and/or "vae" from memory; they are reloaded on next use."""
        ...


def component_bytes(pipe: Any) -> list[int]:
    """Bytes of the weights of each model of a pipeline."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [sum(t.nbytes for t in (*part.parameters(), *part.buffers())) for part in parts]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and log messages of diffusers and transformers."""
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


def warn_if_truncated(prompt: str, tokenizer: Any, length: int | None = None) -> None:
    """Warn when a prompt exceeds `length` tokens, by default the tokeniser's maximum; the end is often the style."""
    length = int(length or tokenizer.model_max_length)
    ids = tokenizer(prompt).input_ids
    if len(ids) > length:
        kept = tokenizer.decode(ids[: length - 1], skip_special_tokens=True)
        warnings.warn(f"the prompt is too long for the text encoder, which reads only {kept!r}", stacklevel=2)


def check_multiple(size: int | None, unit: int, name: str = "size") -> None:
    """Raise UserError unless `size` is a positive multiple of `unit` pixels. name: of the setting."""
    if size is None or size < unit or size % unit:
        raise UserError(f"{name} must be a multiple of {unit} for this base, not {size}")


def check_size(size: int | None, family: Family, name: str = "size") -> None:
    """Raise UserError unless `size` is a multiple of the family's unit and at most `largest`. name: of the setting."""
    check_multiple(size, family.unit, name)
    if family.largest and size and size > family.largest:
        raise UserError(f"{name} must be at most {family.largest} for this base (its position table), not {size}")
