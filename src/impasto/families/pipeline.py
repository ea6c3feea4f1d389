"""The base class of all families: a diffusers folder whose components are loaded on first use."""

import gc
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from impasto import devices
from impasto.errors import UserError
from impasto.families.base import Condition, MakeScheduler, component_bytes, quiet, warn_if_truncated
from impasto.families.files import explain_load_errors, folder_hash, model_index, variant
from impasto.files import read_object

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIBRARIES = ("diffusers", "transformers")
MAX_PROMPT_TOKENS = 1_000_000


class Config(dict[str, Any]):
    """A component's configuration. A missing key raises UserError. damaged: names base and file in the message."""

    def __init__(self, damaged: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.damaged = damaged

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.damaged} lacks {key!r}; fetch it again")


class DiffusersFolder(ABC):
    """The part of `families.base.Family` that does not depend on the architecture.

    A subclass sets pipeline and denoiser class, `layers` by kind, the text components (`encoder_parts`, `clips`),
    `left_out`: components replaced in `from_pretrained`, `main_tokenizer`: the one that keeps most of a prompt,
    `padded_to_length`: whether it pads to the requested length instead of its own, `time_scale`: the pipeline's factor
    from the scheduler's timesteps to the denoiser's, `patch` and `callback_tensors`. `autoencoder_class` and
    `autoencoder_part` where the autoencoder has another class and name than most.
    """

    pipeline_class: ClassVar[str]
    denoiser_class: ClassVar[str]
    layers: ClassVar[Mapping[str, tuple[str, ...]]]
    part: ClassVar[str] = "transformer"
    autoencoder_class: ClassVar[str] = "AutoencoderKL"
    autoencoder_part: ClassVar[str] = "vae"
    pooled_argument: ClassVar[str] = "pooled_projections"
    encoder_parts: ClassVar[tuple[str, ...]]
    clips: ClassVar[tuple[str, ...]] = ("text_encoder",)
    main_tokenizer: ClassVar[str] = "tokenizer"
    padded_to_length: ClassVar[bool] = False
    left_out: ClassVar[Mapping[str, Any]] = {}
    patch: int = 1
    guided_by: str = "negative"
    callback_tensors: ClassVar[Mapping[str, str]]
    denoiser_inputs: ClassVar[Mapping[str, str]] = {}
    time_scale: ClassVar[float] = 1.0
    image_attention: ClassVar[tuple[str, ...]] = ()
    text_first: ClassVar[bool] = False
    schedule: Any

    def __init__(self, folder: Path, card: Mapping[str, Any], device: str, precision: str) -> None:
        self.folder, self.card, self.device, self.precision = folder, card, device, precision
        self.dtype = DTYPES[precision]
        self.kinds = tuple(self.layers)

    @classmethod
    def load(cls, folder: Path, card: Mapping[str, Any], *, device: str, precision: str) -> Self:
        return cls(folder, card, device, precision)

    @cached_property
    def hash(self) -> str:
        return folder_hash(self.folder)

    @cached_property
    def text_lengths(self) -> Mapping[int, float]:
        """From the card; overridden where the text encoders have one fixed length."""
        return {int(length): float(share) for length, share in self.card["text_lengths"].items()}

    def config(self, part: str) -> "Config":
        """The configuration of a component. Raises UserError when it cannot be read."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        damaged = f"the base {str(self.folder)!r} is damaged: {part}/{name}"
        try:
            return Config(damaged, read_object(self.folder / part / name))
        except (OSError, ValueError):
            raise UserError(f"{damaged} cannot be read") from None

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of `model_index.json`."""
        return model_index(self.folder)

    @cached_property
    def absent(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` for text encoders that the folder lacks and for `left_out`."""
        without = {name: None for name in self.encoder_parts if self.index.get(name, [None])[0] is None}
        return without | dict(self.left_out)

    @cached_property
    def unit(self) -> int:
        """Pixels per latent times latents per token."""
        return 2 ** (len(self.config(self.autoencoder_part)["block_out_channels"]) - 1) * self.patch

    @property
    def largest(self) -> int | None:
        """Maximum height and width in pixels, by the position table's size; None without a table."""
        tokens = self.config(self.part).get("pos_embed_max_size")
        return tokens and tokens * self.unit

    @cached_property
    def denoiser(self) -> Any:
        """The frozen denoiser, on the device."""
        model = self.load_component(self.denoiser_class, self.part, self.dtype)
        return model.requires_grad_(False).eval().to(self.device)

    @cached_property
    def vae(self) -> Any:
        """The frozen autoencoder, in float32 at any precision."""
        model = self.load_component(self.autoencoder_class, self.autoencoder_part, torch.float32)
        return model.requires_grad_(False).eval().to(self.device)

    @cached_property
    def encoders(self) -> Any:
        """A pipeline of the text encoders alone; on the CPU if they do not fit on the GPU."""
        pipe = self.build_pipeline(**self.without_images)
        return pipe.to(self.device if encoders_fit(pipe, self.device) else "cpu")

    @property
    def clip_parts(self) -> tuple[str, ...]:
        return tuple(name for name in self.clips if name not in self.absent)

    @cached_property
    def clip(self) -> Any:
        """A pipeline of the CLIPs alone; carries their adapters."""
        return self.pipeline(**self.without_images, **self.without_t5)

    @property
    def without_images(self) -> dict[str, None]:
        """Arguments of `pipeline` that omit what is not for text."""
        return {self.part: None, self.autoencoder_part: None, "scheduler": None}

    @property
    def without_t5(self) -> dict[str, None]:
        """Arguments of `pipeline` that omit the text encoders other than CLIPs, and their tokenisers."""
        kept = {*self.clips, *(name.replace("text_encoder", "tokenizer") for name in self.clips)}
        return {name: None for name in self.encoder_parts if name not in kept}

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], length: int | None = None, pipe: Any = None) -> Condition:
        return self.embed_prompt(prompts, length, pipe)

    def embed_prompt(self, prompts: Sequence[str], length: int | None = None, pipe: Any = None) -> Condition:
        """`encode_prompt` with gradient, by the pipeline's own code; warns when `prompt_tokenizer` truncates."""
        own = None if pipe else str(self.encoders.device)
        pipe, length = pipe or self.encoders, length or next(iter(self.text_lengths))
        with quiet():
            for prompt in prompts:
                warn_if_truncated(prompt, *self.prompt_tokenizer(pipe, length))
            found = self.embed(pipe, list(prompts), length, own or self.device)
        return {name: t.to(self.device) for name, t in found.items()}

    def prompt_tokenizer(self, pipe: Any, length: int) -> tuple[Any, int | None]:
        """The tokeniser of `pipe` that keeps most of a prompt, and its maximum length, None for the tokeniser's own."""
        return getattr(pipe, self.main_tokenizer), length if self.padded_to_length else None

    def text_tokens(self) -> list[tuple[Any, int, int]]:
        """All rows are those of the tokeniser that reads most of a prompt."""
        return [(getattr(self.encoders, self.main_tokenizer), 0, next(iter(self.text_lengths)))]

    @abstractmethod
    def embed(self, pipe: Any, prompts: list[str], length: int, device: str) -> Condition:
        """The conditions from the pipeline's `encode_prompt`, whose encoders are on `device`."""

    def embed_clip(self, prompts: Sequence[str], cond: Condition, pipe: Any = None) -> Condition:
        """For families whose text encoders are CLIPs only."""
        return cond | self.embed_prompt(prompts, pipe=pipe or self.clip)

    def load_component(self, name: str, part: str, dtype: torch.dtype, library: str = "diffusers") -> Any:
        """The component `part`, of class `name` of `library`. Raises UserError when its weights are damaged or missing.

        Half-precision weights (`variant`) are read if there are no others.
        """
        with explain_load_errors(self.folder, part):
            return getattr(import_module(library), name).from_pretrained(
                self.folder, subfolder=part, dtype=dtype, use_safetensors=True, variant=variant(self.folder / part)
            )

    def pipeline(self, **parts: Any) -> Any:
        return self.build_pipeline(**parts).to(self.device)

    def build_pipeline(self, **parts: Any) -> Any:
        """`pipeline` in CPU RAM."""
        with quiet(), explain_load_errors(self.folder):
            given = self.absent | parts
            pipe = self.pipeline_type.from_pretrained(
                self.folder, dtype=self.dtype, use_safetensors=True, **(given | self.load_variants(given))
            )
        pipe.set_progress_bar_config(disable=True)
        self.check_tokenizers(pipe)
        return pipe

    @property
    def pipeline_type(self) -> Any:
        """The class that `pipeline` makes."""
        import diffusers

        return getattr(diffusers, self.pipeline_class)

    def check_tokenizers(self, pipe: Any) -> None:
        """Raise UserError when a CLIP's tokeniser has no maximum length (transformers' default is 10^30)."""
        for name in (clip.replace("text_encoder", "tokenizer") for clip in self.clips):
            if getattr(getattr(pipe, name, None), "model_max_length", 0) > MAX_PROMPT_TOKENS:
                reason = f"{name}/tokenizer_config.json lacks 'model_max_length'"
                raise UserError(f"the base {str(self.folder)!r} is damaged: {reason}; fetch it again")

    def load_variants(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Components that are not `given` and exist as a `variant` only. (The pipeline's own argument `variant` prefers
        the variant where both exist, and counts pickles.)"""
        return {
            part: self.load_component(value[1], part, self.dtype, value[0])
            for part, value in self.index.items()
            if isinstance(value, list) and value[0] in LIBRARIES and part not in given and variant(self.folder / part)
        }

    @property
    def shift_scale(self) -> tuple[float, float]:
        """(shift, scale) of latents: `(z - shift) * scale`."""
        config = self.vae.config
        return config.shift_factor or 0.0, config.scaling_factor

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """`(mean - shift) * scale` with the posterior's mean, not a sample, so that latents can be cached."""
        self.check_pixels(pixels)
        shift, scale = self.shift_scale
        mean = self.vae.encode(pixels.to(self.device, torch.float32)).latent_dist.mode()
        return (mean - shift) * scale

    def check_pixels(self, pixels: Tensor) -> None:
        """Raise UserError unless height and width are multiples of the unit."""
        height, width = pixels.shape[-2:]
        if height % self.unit or width % self.unit:
            raise UserError(f"size must be a multiple of {self.unit} for this base, not {width} x {height}")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        shift, scale = self.shift_scale
        return self.vae.decode(latents.float() / scale + shift, return_dict=False)[0]

    @abstractmethod
    def predict(self, z_t: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        """See `families.base.Family`."""

    @abstractmethod
    def target(self, x: Tensor, eps: Tensor, lam: Tensor) -> Tensor:
        """See `families.base.Family`."""

    def error(self, x: Tensor, eps: Tensor, lam: Tensor, cond: Condition) -> Tensor:
        predicted = self.predict(self.schedule.add_noise(x, eps, lam), lam, cond).float()
        return (predicted - self.target(x, eps, lam)).square().mean((1, 2, 3))

    def unpack(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        return latents

    def pack(self, latents: Tensor) -> Tensor:
        return latents

    def sampling_levels(self, steps: int, size: tuple[int, int], make: MakeScheduler | None = None) -> Tensor:
        """The scheduler is called as the pipeline calls it (`scheduler_arguments`)."""
        import diffusers

        config = self.config("scheduler")
        with quiet():
            scheduler = (make or getattr(diffusers, config["_class_name"]).from_config)(config)
        tokens = size[0] // self.patch * (size[1] // self.patch)
        scheduler.set_timesteps(steps, **self.scheduler_arguments(scheduler.config, steps, tokens))
        return self.schedule.log_snr(scheduler.timesteps.double() * self.time_scale)

    def scheduler_arguments(self, scheduler: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
        """Arguments of the pipeline's `set_timesteps` beside the number of steps, for `tokens` image tokens."""
        return {}

    def modules(self, kind: str) -> tuple[str, ...]:
        return self.layers[kind]

    def padding(self, length: int) -> dict[str, int]:
        return {}

    def embeddings(self, cond: Condition, negative: Condition | None, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Call arguments for `cond` and, with the prefix "negative_", `negative`. names: argument for tensor name."""
        call = {argument: cond[name] for name, argument in names.items()}
        if negative is not None:
            call |= {f"negative_{argument}": negative[name] for name, argument in names.items()}
        return {name: t.to(self.device, self.dtype) for name, t in call.items()}

    def save_adapter(self, file: Path, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        layers: dict[str, Any] = {}
        for part, (tensors, metadata) in adapters.items():
            layers |= {f"{part}_lora_layers": dict(tensors), f"{part}_lora_adapter_metadata": dict(metadata)}
        self.pipeline_type.save_lora_weights(file.parent, weight_name=file.name, **layers)

    def free(self, *parts: str) -> None:
        for part in parts:
            vars(self).pop(part, None)
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def encoders_fit(pipe: Any, device: str) -> bool:
    """Whether the text encoders of `pipe` fit on `device`; warns if they do not."""
    if not device.startswith("cuda"):
        return True
    sizes, free = component_bytes(pipe), torch.cuda.mem_get_info(device)[0]
    if devices.inference_placement(sizes, 0, free) == "whole":
        return True
    warnings.warn(
        f"the text encoders take {sum(sizes) / 1e9:.0f} GB and {free / 1e9:.0f} are free: captions are encoded on the "
        "CPU, which takes longer",
        stacklevel=2,
    )
    return False


def dynamic_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """`mu` of a scheduler whose time shift depends on the number of image tokens, as the pipelines compute it."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(scheduler[name] for name in names))
