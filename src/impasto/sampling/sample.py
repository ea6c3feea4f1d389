"""Sampling: prompts and seeds to images by the base's ordinary diffusers pipeline.

Image i of a run starts from `torch.Generator("cpu").manual_seed(seed + i)`, so that plain diffusers repeats it at any
batch size.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from impasto.errors import UserError
from impasto.families.base import Condition, Family, quiet
from impasto.guidance import style_guidance
from impasto.guidance.prompt_switch import PromptSwitch, switching
from impasto.guidance.style_aligned import Reference
from impasto.guidance.style_guidance import Weights
from impasto.noise.schedule import VariancePreserving
from impasto.sampling.png import Info

VERSION = version("impasto")


@dataclass(frozen=True)
class Sampling:
    """How images are sampled. steps, guidance, size and batch as the base's card says where they are None.

    style_guidance, base_guidance: see `guidance.style_guidance.Weights`. negative: the negative prompt, STYLE_WORDS for
    the words of the style. None in these: `generate` takes the style's own defaults, see `styles.defaults`; elsewhere
    they are 0 and "".
    """

    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    size: int | None = None
    batch: int | None = None
    style_guidance: float | None = None
    base_guidance: float | None = None

    def on(self, family: Family) -> "Sampling":
        """With the card's values filled in. Raises UserError where one is out of range."""
        card = family.card["generate"]
        filled = Sampling(
            steps=card["steps"] if self.steps is None else self.steps,
            guidance=card["guidance"] if self.guidance is None else self.guidance,
            negative=self.negative or "",
            size=family.card["size"] if self.size is None else self.size,
            batch=card["batch"] if self.batch is None else self.batch,
            style_guidance=self.style_guidance or 0.0,
            base_guidance=self.base_guidance or 0.0,
        )
        for name in ("steps", "size", "batch"):
            if getattr(filled, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(filled, name)}")
        most = len(family.schedule.levels) - 1 if isinstance(family.schedule, VariancePreserving) else math.inf
        if (filled.steps or 0) > most:
            raise UserError(f"steps must be at most {most} for this base, not {filled.steps}: its schedule has no more")
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

    def weights(self, family: Family) -> Weights:
        """How predictions combine; guidance of 1 or less, and of a base without negative prompts, is none."""
        guided = family.guided_by == "negative" and (self.guidance or 0.0) > 1
        return Weights((self.guidance or 1.0) if guided else 1.0, self.style_guidance or 0.0, self.base_guidance or 0.0)


def encoder(family: Family, pipe: Any, batch: int = 32) -> Callable[[str], Condition]:
    """Prompt -> condition by the pipeline's own encoders; each prompt by itself, so that no batch can touch it.

    batch: pictures drawn at once. The last 2 batch + 2 conditions are kept: a batch asks for a prompt and a second one
    per picture, the negative one and the reference's caption. One of FLUX takes 4 MB of the device.
    """

    @lru_cache(2 * batch + 2)
    def encode(prompt: str) -> Condition:
        return family.encode_prompt([prompt], pipe=pipe)

    return encode


def sample(
    family: Family,
    pipe: Any,
    jobs: Sequence[tuple[str, int]],
    encode: Callable[[str], Condition],
    sampling: Sampling,
    about: Info,
    extra: dict[str, Any] | None = None,
    switch: PromptSwitch | None = None,
    reference: Reference | None = None,
) -> Iterator[tuple[Image.Image, Info]]:
    """Draw jobs of (prompt, seed) in batches. about: what their Info says of base and styles. sampling, switch: filled
    in. reference: one more row before those of each batch, which they are aligned to.
    """
    asked = {"output_type": "pt"} | (extra or {})
    steps, guidance, size, batch = sampling.steps, sampling.guidance, sampling.size, sampling.batch
    assert steps is not None and guidance is not None and size is not None and batch is not None
    weights = sampling.weights(family)
    compared = family.guided_by == "negative" and (weights.guidance > 1 or weights.base > 0)
    composed = weights.style > 0 or weights.base > 0
    scale = max(guidance, 2.0) if composed and compared else guidance  # above 1 the pipeline asks for the negative
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        rows = [(encode(prompt), seed) for prompt, seed in part]
        if reference:
            rows.insert(0, (reference.condition, 0))  # its noise is not used
        cond = join([row for row, _ in rows])
        negative = join([encode(sampling.negative or "")] * len(rows)) if compared else None
        own = family.call_arguments(cond, negative)
        told: Any = nullcontext(own)
        if switch is not None:
            second = [encode(switch.second(prompt)) for prompt, _ in part]
            other = join([reference.condition, *second] if reference else second)
            told = switching(family, pipe, switch, (own, family.call_arguments(other, negative)))
        leading = reference.leading(2 if compared else 1) if reference else nullcontext()
        guided = style_guidance.guiding(getattr(pipe, family.part), weights, compared) if composed else nullcontext()
        with quiet(), leading, guided, told as call:
            images = pipe(
                **call,
                generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in rows],
                num_inference_steps=steps,
                guidance_scale=scale,
                height=size,
                width=size,
                **asked,
            ).images
        if reference:
            images, about = images[1:], about | {"aligned": reference.info}
        for pixels, (prompt, seed) in zip(images, part, strict=True):
            if not pixels.isfinite().all():
                warnings.warn(
                    f"the picture of seed {seed} came out as numbers that are not finite, and is black: take a "
                    "strength nearer to 1, less guidance, or --precision fp32",
                    stacklevel=2,
                )
            image = as_image(pixels) if asked["output_type"] == "pt" else pixels
            info = {"prompt": prompt, "negative_prompt": sampling.negative, "seed": seed, "steps": steps}
            info |= {"guidance": guidance, "width": size, "height": size}
            info |= weights.info if about.get("styles") else {}
            info |= switch.info(prompt) if switch is not None else {}
            yield image, info | about | {"version": VERSION}


def as_image(pixels: torch.Tensor) -> Image.Image:
    """(3, h, w) in [0, 1] as diffusers itself makes a picture of it, black where a number is not finite."""
    pixels = pixels if pixels.isfinite().all() else torch.zeros_like(pixels)
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels[None]))[0]


def join(conds: Sequence[Condition]) -> Condition:
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
