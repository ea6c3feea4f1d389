"""Previews: what the style draws while it is trained, by the very code, scheduler and guidance of `generate`, with the
defaults (strength, style guidance, negative prompt) that `generate` will use for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from impasto.adapters.text_encoder import TextConditioning
from impasto.config import TrainConfig
from impasto.data.prepare import text
from impasto.families.base import Condition, Family
from impasto.guidance import bind_all
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling, sample
from impasto.styles import defaults as style_defaults


class Previews:
    """Encodes the prompts of the previews while the text encoders are there; draws them later from the live model."""

    def __init__(self, family: Family, config: TrainConfig, conditioning: TextConditioning) -> None:
        self.family, self.config, self.text = family, config, conditioning
        self.prompts = (
            list(config.log.preview_prompt or dict.fromkeys(config.data.caption)) if config.log.preview else []
        )
        captions = list(config.data.caption)
        self.strength, self.guidances, given = 1.0, [], Sampling(size=config.data.size)
        if not self.prompts:
            return
        self.strength, self.sampling, settings = style_defaults.of_run(config, family, captions, given)
        self.guidances = bind_all(settings, family, self.sampling, self.encode)
        also = [self.sampling.negative or "", *(prompt for one in self.guidances for prompt in one.prompts)]
        length = next(iter(family.text_lengths))
        prompts = [*self.prompts, *also]
        self.conds = {prompt: text(family, conditioning.spell(prompt), length) for prompt in prompts}

    def encode(self, prompt: str) -> Condition:
        return self.text.encode([prompt], self.conds[prompt])

    def generate(self, step: int) -> list[str]:
        """Write `previews/step-000150-0.png` on; returns their names in the style folder."""
        if not self.prompts:
            return []
        encoders: dict[str, Any] = dict.fromkeys(self.family.encoder_parts)
        pipe = self.family.pipeline(**encoders, **{self.family.part: self.family.denoiser})
        jobs = [(prompt, self.config.seed + i) for i, prompt in enumerate(self.prompts)]
        style = {"path": str(self.config.out), "strength": self.strength, "hash": None, "step": step}
        about = {"base": self.config.base, "base_hash": self.family.hash, "styles": [style]}
        about |= self.sampling.weights(self.family).info
        (self.config.out / "previews").mkdir(exist_ok=True)
        names = []
        with torch.no_grad(), as_sampled(self.models(), self.family.dtype, self.strength):
            images = sample(self.family, pipe, jobs, cache(self.encode), self.sampling, about, self.guidances)
            for i, (image, info) in enumerate(images):
                names.append(f"previews/step-{step:06d}-{i}.png")
                save_png(image, info, self.config.out / names[-1])
        return names

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
