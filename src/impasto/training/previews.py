"""Previews: what the style draws while it is trained, by the very code, scheduler and guidance of `generate`, with the
defaults (strength, style guidance, negative prompt) that `generate` will use for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from impasto.adapters.text_encoder import TextConditioning
from impasto.bases.style_defaults import PLAIN
from impasto.config import TrainConfig
from impasto.data.prepare import text
from impasto.families.base import Family
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
        self.defaults = style_defaults.of_run(config, family, captions) if self.prompts else PLAIN
        self.sampling = self.defaults.complete(Sampling(size=config.data.size)).on(family)
        length = next(iter(family.text_lengths))
        prompts = [*self.prompts, self.sampling.negative or ""]
        self.conds = {prompt: text(family, conditioning.spell(prompt), length) for prompt in prompts}

    def generate(self, step: int) -> list[str]:
        """Write `previews/step-000150-0.png` on; returns their names in the style folder."""
        if not self.prompts:
            return []
        encoders: dict[str, Any] = dict.fromkeys(self.family.encoder_parts)
        pipe = self.family.pipeline(**encoders, **{self.family.part: self.family.denoiser})
        jobs = [(prompt, self.config.seed + i) for i, prompt in enumerate(self.prompts)]
        style = {"path": str(self.config.out), "strength": self.defaults.strength, "hash": None, "step": step}
        about = {"base": self.config.base, "base_hash": self.family.hash, "styles": [style]}
        about |= self.sampling.weights(self.family).info
        (self.config.out / "previews").mkdir(exist_ok=True)
        names = []
        with torch.no_grad(), as_sampled(self.models(), self.family.dtype, self.defaults.strength):
            conds = {prompt: self.text.encode([prompt], cond) for prompt, cond in self.conds.items()}
            for i, (image, info) in enumerate(sample(self.family, pipe, jobs, conds.__getitem__, self.sampling, about)):
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
