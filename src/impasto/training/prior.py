"""Prior preservation: the base's own images, made before training."""

import warnings
from typing import Any

import torch
from torch import Tensor

from impasto.config import TrainConfig
from impasto.data.prepare import cached, stack, text
from impasto.errors import UserError
from impasto.execution.apply import NOT_QUANTIZED
from impasto.families.base import Family
from impasto.objectives.base import Objective
from impasto.objectives.config import PriorConfig
from impasto.objectives.prior import Prior
from impasto.sampling.sample import Sampling, sample


def check(config: TrainConfig, family: Family) -> None:
    """Raise UserError as `captions` does; warns where more pictures of the base were asked for, above the default, than
    a batch holds."""
    captions(config, family)
    if config.prior.batch > max(config.optim.batch, PriorConfig.batch):
        warnings.warn(
            f"prior.batch {config.prior.batch} is more than batch {(n := config.optim.batch)}, and each of the base's "
            f"images has the noise level of an item: {n} a forward pass; raise --batch or lower --prior.batch",
            stacklevel=2,
        )


def captions(config: TrainConfig, family: Family) -> list[str]:
    """`config.prior.prompt`, or the `prior_prompts` of the base's card. Raises UserError when there are none."""
    found = list(config.prior.prompt or family.card.get("prior_prompts", ()))
    if not found:
        raise UserError("prior.weight needs captions that this base knows: give some with --prior.prompt")
    return found


def read(config: TrainConfig, family: Family) -> None:
    """Encode into the cache what `build` will ask for, as long as the text encoders are there."""
    length = next(iter(family.text_lengths))
    for prompt in [*captions(config, family), ""]:  # "": the negative prompt
        text(family, prompt, length)


def build(config: TrainConfig, family: Family, objective: Objective) -> Prior:
    """Draw (or find) the base's pictures of its `captions`, as it lies on the device: quantised where it is.

    The denoiser must not carry an adapter yet; after `read` no text encoder is needed.
    """
    prompts = captions(config, family)
    sampling = Sampling(size=config.data.size).on(family)
    artist = PriorSampler(family, sampling, config.execution.quantize)
    length = next(iter(family.text_lengths))
    x = torch.cat([artist.latent(prompt, i) for i, prompt in enumerate(prompts)]).to(family.device)
    cond = {name: rows.to(family.device) for name, rows in stack([text(family, p, length) for p in prompts]).items()}
    return Prior(objective, config.prior.weight, min(config.prior.batch, config.optim.batch), x, cond)


class PriorSampler:
    """Draws latents with the base's own pipeline, which is loaded when the cache lacks one. quantize: how the denoiser
    is, "none" and "auto" where it is not."""

    def __init__(self, family: Family, sampling: Sampling, quantize: str = "none") -> None:
        self.family, self.sampling, self.quantize, self.pipe = family, sampling, quantize, None

    def latent(self, prompt: str, seed: int) -> Tensor:
        """(1, C, h, w): the base's picture of `prompt` from `seed`."""
        key: dict[str, Any] = {"picture of": prompt, "seed": seed, "base": self.family.hash}
        key |= {"steps": self.sampling.steps, "guidance": self.sampling.guidance, "size": self.sampling.size}
        key |= {"precision": self.family.precision}
        key |= {} if self.quantize in NOT_QUANTIZED else {"quantize": self.quantize}
        return cached(key, lambda: {"x": self.draw(prompt, seed)})["x"]

    def draw(self, prompt: str, seed: int) -> Tensor:
        family = self.family
        if self.pipe is None:
            parts: dict[str, Any] = dict.fromkeys(family.encoder_parts)
            self.pipe = family.pipeline(**parts, **{family.part: family.denoiser})
        length = next(iter(family.text_lengths))
        pictures = sample(
            family, self.pipe, [(prompt, seed)], lambda p: text(family, p, length), self.sampling, {}, output="latent"
        )
        latent: Any = next(pictures)[0]
        size = self.sampling.size or 0
        return family.unpack(latent[None], (size, size)).float()
