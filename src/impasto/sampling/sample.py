"""Sampling: prompts and seeds to images by the base's ordinary diffusers pipeline.

Image i of a run starts from `torch.Generator("cpu").manual_seed(seed + i)`, so that plain diffusers repeats it at any
batch size.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from impasto.adapters import token as learned_tokens
from impasto.adapters.token import Token
from impasto.errors import UserError
from impasto.families.base import Condition, Family, MakeScheduler, quiet
from impasto.guidance import style_guidance
from impasto.guidance.base import Encode, Guidance, Rows
from impasto.guidance.style_guidance import Weights
from impasto.noise.schedule import VariancePreserving
from impasto.progress import Progress, ignore
from impasto.sampling.png import Info
from impasto.sampling.samplers import DEFAULT, make_scheduler, scheduler_class, using

VERSION = version("impasto")
TEMPERATURES = ("temperature", "token_temperature")
"""Settings of bases that draw tokens."""


@dataclass(frozen=True)
class Sampling:
    """How images are sampled. What is None is as the base's card says.

    Attributes:
        steps: Sampling steps.
        guidance: Guidance scale.
        negative: The negative prompt, STYLE_WORDS for the words of the style. None: the style's own default in
            `generate`, see `styles.defaults`; "" elsewhere.
        size: Width in pixels, and the height where `height` is None.
        batch: Images per call of the pipeline.
        style_guidance: Weight of the style against the base, see `guidance.style_guidance.Weights`; None as above, else
            0.
        base_guidance: Weight of the base's own guidance beside it; None as above, else 0.
        sampler: A name in SAMPLERS; "default" where style and card are silent too.
        until: Timestep of 0 to 1000 (a rectified flow's noise share times 1000) at which sampling starts, from latents
            of that level; None for all steps.
        temperature: Of bases that draw tokens (Muse): randomness of which tokens are kept.
        token_temperature: Of the same bases: temperature of the softmax that tokens are drawn from; 1 where the card
            has none.
    """

    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    size: int | None = None
    batch: int | None = None
    style_guidance: float | None = None
    base_guidance: float | None = None
    sampler: str | None = None
    until: float | None = None
    temperature: float | None = None
    height: int | None = None
    token_temperature: float | None = None

    def on(self, family: Family) -> "Sampling":
        """With the card's values filled in. Raises UserError where one is out of range."""
        card = family.card["generate"]
        size = family.card["size"] if self.size is None else self.size
        filled = Sampling(
            steps=card["steps"] if self.steps is None else self.steps,
            guidance=card["guidance"] if self.guidance is None else self.guidance,
            negative=self.negative or "",
            size=size,
            batch=card["batch"] if self.batch is None else self.batch,
            style_guidance=self.style_guidance or 0.0,
            base_guidance=self.base_guidance or 0.0,
            sampler=card.get("sampler", DEFAULT) if self.sampler is None else self.sampler,
            until=self.until,
            temperature=card.get("temperature") if self.temperature is None else self.temperature,
            height=size if self.height is None else self.height,
            token_temperature=card.get("token_temperature")
            if self.token_temperature is None
            else self.token_temperature,
        )
        for name in ("steps", "size", "height", "batch"):
            if getattr(filled, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(filled, name)}")
        scheduler_class(filled.sampler or DEFAULT, family)
        most = len(family.schedule.levels) - 1 if isinstance(family.schedule, VariancePreserving) else math.inf
        if (filled.steps or 0) > most:
            raise UserError(f"steps must be at most {most} for this base, not {filled.steps}: its schedule has no more")
        for name in TEMPERATURES:
            flag, value = name.replace("_", "-"), getattr(filled, name)
            if getattr(self, name) is not None and not family.schedule.masked:
                raise UserError(f"{flag} is for bases that draw tokens (Muse), which this one does not: leave it out")
            if not 0 <= (value or 0.0) < math.inf:
                raise UserError(f"{flag} must be a finite number from 0 on, not {value}")
        if not 0 <= (filled.guidance or 0.0) < math.inf:
            raise UserError(f"guidance must be a finite number from 0 on, not {filled.guidance}")
        style_guidance.check_weight(filled.style_guidance or 0.0, "style-guidance")
        style_guidance.check_weight(filled.base_guidance or 0.0, "base-guidance")
        if filled.base_guidance and family.guided_by != "negative":
            raise UserError("base-guidance needs a negative prompt, which this base does not take: leave it out")
        if self.negative and family.guided_by != "negative":
            warnings.warn("this base is not guided by a negative prompt: what it says is not used", stacklevel=2)
        elif self.negative and (filled.guidance or 0.0) <= 1 and not filled.base_guidance:
            warnings.warn("without guidance above 1 a negative prompt is not used", stacklevel=2)
        if self.guidance and family.guided_by == "nothing":
            warnings.warn("this base takes no guidance: the scale is not used", stacklevel=2)
        return filled

    @property
    def temperatures(self) -> dict[str, float]:
        """{name: value} of the settings TEMPERATURES, without those that are None."""
        return {name: value for name in TEMPERATURES if (value := getattr(self, name)) is not None}

    @property
    def token_arguments(self) -> dict[str, Any]:
        """The pipeline's arguments temperature (falling to 0 over the steps) and token_temperature, where set."""
        values: dict[str, Any] = dict(self.temperatures)
        return values | ({} if self.temperature is None else {"temperature": (self.temperature, 0.0)})

    def scheduler(self, family: Family) -> MakeScheduler | None:
        """What makes the sampler's scheduler, see `samplers.make_scheduler`; None for the base's own."""
        return make_scheduler(self.sampler or DEFAULT, family)

    def guided(self, family: Family) -> bool:
        """Whether the pipeline is to compute the negative prompt for its guidance scale."""
        return family.guided_by == "negative" and (self.guidance or 0.0) > 1

    def guidances(self, family: Family) -> list[Guidance]:
        """Those that these settings ask for by themselves."""
        weights = self.weights(family)
        return [style_guidance.StyleGuidance(weights)] if weights.style or weights.base else []

    def weights(self, family: Family) -> Weights:
        """How predictions combine; guidance of 1 or less, and of a base without negative prompts, is none."""
        scale = (self.guidance or 1.0) if self.guided(family) else 1.0
        return Weights(scale, self.style_guidance or 0.0, self.base_guidance or 0.0)


def encoder(family: Family, pipe: Any, batch: int = 32, tokens: Sequence[Token] = ()) -> Encode:
    """Prompt -> condition by the pipeline's own encoders; each prompt by itself, so that no batch can touch it.

    batch: pictures drawn at once. The last 2 batch + 2 conditions are kept: a batch asks for a prompt and a second one
    per picture, the negative one and the reference's caption. One of FLUX takes 4 MB of the device.
    tokens: learned ones that the pipeline has; they stand for the words that they were trained for too.
    """

    @lru_cache(2 * batch + 2)
    def encode(prompt: str) -> Condition:
        if not tokens:
            return family.encode_prompt([prompt], pipe=pipe)
        with torch.no_grad():
            return learned_tokens.encode(family, tokens, [place_tokens(prompt, tokens)], pipe)

    return encode


def place_tokens(prompt: str, tokens: Sequence[Token]) -> str:
    """The prompt with the names of learned tokens in place of their words."""
    for token in tokens:
        prompt = token.place(prompt)
    return prompt


def sample(
    family: Family,
    pipe: Any,
    jobs: Sequence[tuple[str, int]],
    encode: Encode,
    sampling: Sampling,
    about: Info,
    guidances: Sequence[Guidance] = (),
    *,
    start: Callable[[int], Tensor] | None = None,
    output: Literal["pil", "latent"] = "pil",
    progress: Progress = ignore,
    phase: str = "generating",
) -> Iterator[tuple[Image.Image, Info]]:
    """Generate images for jobs of (prompt, seed), in batches.

    sampling: filled in. about: what their Info states of base and styles. guidances: beside the weights of `sampling`,
    bound to this base.

    start: seed -> latents (1, C, h, w) that its image starts from, in the pipeline's units; Gaussian noise of the
    seed by default. output: "latent" yields the pipeline's latents instead of images. progress: called with `phase` and
    the sampling steps done, of all batches.
    """
    steps, guidance, size, batch = sampling.steps, sampling.guidance, sampling.size, sampling.batch
    height = size if sampling.height is None else sampling.height
    assert steps is not None and guidance is not None and size is not None and batch is not None
    guidances = [*sampling.guidances(family), *guidances]
    negative = sampling.negative or ""
    compared = sampling.guided(family) or any(one.needs_negative for one in guidances)
    leading = [prompt for one in guidances for prompt in one.leading]
    scheduler = sampling.scheduler(family)
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        prompts, seeds = (*leading, *(prompt for prompt, _ in part)), [0] * len(leading) + [seed for _, seed in part]
        rows = Rows(family, encode, prompts, len(leading), negative if compared else None, guidance)
        call = rows.call() | {"guidance_scale": guidance}
        call |= sampling.token_arguments
        if start is not None:
            call["latents"] = family.pack(torch.cat([start(seed) for seed in seeds]))
        with quiet(), using(pipe, scheduler, sampling.until), ExitStack() as active:
            for one in guidances:
                call |= active.enter_context(one.apply(pipe, rows))
            then: Any = call.get("callback_on_step_end")
            call["callback_on_step_end"] = CountedSteps(progress, phase, first, batch, len(jobs), steps, then)
            images = pipe(
                **call,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                height=height,
                width=size,
                output_type="pt" if output == "pil" else output,
            ).images[len(leading) :]
        for pixels, (prompt, seed) in zip(images, part, strict=True):
            if not pixels.isfinite().all():
                warnings.warn(
                    f"the image of seed {seed} has values that are not finite, and is black: take a "
                    "strength nearer to 1, less guidance, or --precision fp32",
                    stacklevel=2,
                )
            image = as_image(pixels) if output == "pil" else pixels
            info = {"prompt": prompt, "negative_prompt": sampling.negative, "seed": seed, "steps": steps}
            info |= {"guidance": guidance, "width": size, "height": height}
            info |= {} if sampling.until is None else {"until": sampling.until}
            info |= {"sampler": sampling.sampler} if sampling.sampler not in (None, DEFAULT) else {}
            info |= sampling.temperatures
            for one in guidances:
                info |= one.info(prompt)
            yield image, info | about | {"version": VERSION}


@dataclass
class CountedSteps:
    """A pipeline's `callback_on_step_end` that reports the steps of all batches; `then`: another one, called as well.

    first: number of the batch's first job, of `jobs`.
    """

    progress: Progress
    phase: str
    first: int
    batch: int
    jobs: int
    steps: int
    then: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        done = self.first // self.batch * self.steps + step + 1
        last = min(self.first + self.batch, self.jobs)
        note = f"image {last} of {self.jobs}" if self.jobs > 1 else ""
        self.progress(self.phase, done, math.ceil(self.jobs / self.batch) * self.steps, note)
        return self.then(pipe, step, timestep, tensors) if self.then else tensors


def as_image(pixels: torch.Tensor) -> Image.Image:
    """(3, h, w) in [0, 1] as diffusers itself makes a picture of it, black where a number is not finite."""
    pixels = pixels if pixels.isfinite().all() else torch.zeros_like(pixels)
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels[None]))[0]
