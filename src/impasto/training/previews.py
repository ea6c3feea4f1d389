"""Previews: images of the style while it is trained, by the very code, scheduler and guidance of `generate`, with the
defaults (strength, style guidance, negative prompt) that `generate` will use for it. Their prompts are those given,
else other things in the captions' style words, which show whether a style was learnt and not an image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from impasto.adapters.base import adapter_of
from impasto.adapters.lora import disabled
from impasto.adapters.text_encoder import TextConditioning
from impasto.config import TrainConfig
from impasto.data.prepare import text
from impasto.families.base import Condition, Family
from impasto.guidance import bind_all
from impasto.guidance.base import Encode, Guidance
from impasto.progress import Progress, ignore
from impasto.sampling.png import Info, save_png
from impasto.sampling.sample import Sampling, sample
from impasto.styles import defaults as style_defaults

CAPTION_IMAGES = 2
"""Images of the first caption by the base alone."""


class Previews:
    """Encodes the prompts of the previews while the text encoders are there; generates them later by the live model."""

    def __init__(self, family: Family, config: TrainConfig, conditioning: TextConditioning) -> None:
        self.family, self.config, self.text = family, config, conditioning
        captions = list(config.data.caption)
        own = (
            list(config.log.preview_prompt)
            or style_defaults.prompts_of_others(captions)
            or list(dict.fromkeys(captions))
        )
        self.prompts = own if config.log.preview else []
        self.of_base: list[str] = []
        self.strength, self.guidances, given = 1.0, [], Sampling(size=config.data.size)
        if not self.prompts:
            return
        self.given, self.captions = given, captions
        self.read_defaults()
        self.of_base = [*self.prompts, *CAPTION_IMAGES * captions[:1]]
        also = [self.sampling.negative or "", *(prompt for one in self.guidances for prompt in one.prompts)]
        length = next(iter(family.text_lengths))
        prompts = [*self.of_base, *also, ""]
        self.conds = {prompt: text(family, conditioning.spell(prompt), length) for prompt in prompts}

    def read_defaults(self) -> None:
        """Take strength, sampling and guidances from the style's defaults as they are now."""
        own = style_defaults.of_run(self.config, self.family, self.captions, self.given)
        self.strength, self.sampling, settings = own
        self.guidances = bind_all(settings, self.family, self.sampling, self.encode)

    def encode(self, prompt: str) -> Condition:
        return self.text.encode([prompt], self.conds[prompt])

    def generate(self, step: int, progress: Progress = ignore) -> list[str]:
        """Write `previews/step-000150-0.png` on; returns their names in the style folder."""
        if not self.prompts:
            return []
        style = {"path": str(self.config.out), "strength": self.strength, "hash": None, "step": step}
        about = {"styles": [style]} | self.sampling.weights(self.family).info
        names = [f"previews/step-{step:06d}-{i}.png" for i in range(len(self.prompts))]
        with as_sampled(self.models(), self.family.dtype, self.strength):
            self.write(names, cache(self.encode), self.sampling, about, self.guidances, progress)
        return names

    @torch.no_grad()
    def images(self, strength: float | None = None, sampling: Sampling | None = None) -> list[Image.Image]:
        """An image per prompt by the live model, not written; by default sampled as the style is."""
        with as_sampled(self.models(), self.family.dtype, self.strength if strength is None else strength):
            made = self.sample(cache(self.encode), sampling or self.sampling, {}, self.guidances)
            return [image for image, _ in made]

    def generate_base(self, progress: Progress = ignore) -> dict[str, str]:
        """Write `previews/base/0000.png` on: the base alone on the same prompts and seeds, then on the first caption,
        sampled as its card says. Returns {name: prompt} of what was written; nothing where they are there already."""
        names = {f"previews/base/{i:04d}.png": prompt for i, prompt in enumerate(self.of_base)}
        there = all((self.config.out / name).is_file() for name in names)
        if there or adapter_of(self.config.adapter).replaces_base:
            return {}
        sampling = Sampling(size=self.config.data.size, negative="").on(self.family)
        own: dict[str, Any] = {"progress": progress, "phase": "previews of the base"}
        with disabled(self.family.denoiser):
            self.write(list(names), self.conds.__getitem__, sampling, {"styles": []}, prompts=self.of_base, **own)
        return names

    @torch.no_grad()
    def write(
        self,
        names: Sequence[str],
        encode: Encode,
        sampling: Sampling,
        about: dict[str, Any],
        guidances: Sequence[Guidance] = (),
        progress: Progress = ignore,
        phase: str = "previews",
        prompts: Sequence[str] | None = None,
    ) -> None:
        """Generate an image per prompt (by default `self.prompts`) by the model as it is, into these files of the style
        folder."""
        images = self.sample(encode, sampling, about, guidances, progress, phase, prompts)
        for name, (image, info) in zip(names, images, strict=True):
            (self.config.out / name).parent.mkdir(parents=True, exist_ok=True)
            save_png(image, info, self.config.out / name)

    def sample(
        self,
        encode: Encode,
        sampling: Sampling,
        about: dict[str, Any],
        guidances: Sequence[Guidance] = (),
        progress: Progress = ignore,
        phase: str = "previews",
        prompts: Sequence[str] | None = None,
    ) -> Iterator[tuple[Image.Image, Info]]:
        """Images of the prompts (by default `self.prompts`) with their Info, by the model as it is."""
        family = self.family
        encoders: dict[str, Any] = dict.fromkeys(family.encoder_parts)
        pipe = family.pipeline(**encoders, **{family.part: family.denoiser})
        jobs = [(prompt, self.config.seed + i) for i, prompt in enumerate(prompts or self.prompts)]
        about = {"base": self.config.base, "base_hash": family.hash} | about
        return sample(family, pipe, jobs, encode, sampling, about, guidances, progress=progress, phase=phase)

    def models(self) -> list[Any]:
        """The models that carry adapters."""
        return [self.family.denoiser, *self.text.models().values()]


@contextmanager
def as_sampled(models: Sequence[Any], dtype: torch.dtype, strength: float) -> Iterator[None]:
    """The adapters at a strength, and in the base's precision, as diffusers loads them and `generate` has them."""
    moved = [(p, p.data) for model in models for p in model.parameters() if p.requires_grad]
    found = (layer for model in models for layer in model.modules())
    layers: list[Any] = [layer for layer in found if isinstance(layer, BaseTunerLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: strength * scale for name, scale in layer.scaling.items()})
        for p, data in moved:
            p.data = data.to(dtype)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
        for p, data in moved:
            p.data = data
