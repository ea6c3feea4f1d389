"""Prior preservation: the base's own images, made before training, or given images of a class."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.config import TrainConfig
from impasto.data import items as data
from impasto.data.config import DataConfig
from impasto.data.items import Item
from impasto.data.prepare import cached, prepare_items, stack, text
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
    if not config.prior.image:
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


def read_images(config: TrainConfig) -> list[Item]:
    """The given images, squares, with their captions; none where the base generates them. Raises UserError as
    `data.items.read` does."""
    own = config.prior
    if not own.image or not own.weight:
        return []
    given = DataConfig(
        image=own.image, caption=own.prompt, size=config.data.size, buckets="off", skip_bad=config.data.skip_bad
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"the caption .* names no style")  # it names a class
            return data.read(given, config.base, {})
    except UserError as error:
        flags = str(error).replace("--caption", "--prior.prompt").replace("--image", "--prior.image")
        raise UserError(f"prior.image: {flags}") from None


def read(config: TrainConfig, family: Family, images: Sequence[Item] = ()) -> None:
    """Encode into the cache what `build` will ask for, as long as VAE and text encoders are there."""
    if images:
        prepare_items(family, images)
        return
    length = next(iter(family.text_lengths))
    for prompt in [*captions(config, family), ""]:  # "": the negative prompt
        text(family, prompt, length)


def build(config: TrainConfig, family: Family, objective: Objective, images: Sequence[Item] = ()) -> Prior:
    """With the given images, or with the base's pictures of its `captions`, generated (or found) as it lies on the
    device: quantised where it is.

    The denoiser must not carry an adapter yet; after `read` neither VAE nor text encoders are needed.
    """
    length = next(iter(family.text_lengths))
    if images:
        prepared = prepare_items(family, images)
        x = torch.stack(list(prepared.x))
        cond = {name: torch.stack(list(rows)) for name, rows in prepared.conds[length].items()}
        rows = torch.tensor([pair.caption for pair in prepared.pairs])
    else:
        prompts = captions(config, family)
        artist = PriorSampler(family, Sampling(size=config.data.size).on(family), config.execution.quantize)
        rows = torch.arange(len(prompts) * config.prior.per_prompt) % len(prompts)
        x = torch.cat([artist.latent(prompts[row], seed) for seed, row in enumerate(rows)])
        cond = stack([text(family, p, length) for p in prompts])
    count, own = min(config.prior.batch, config.optim.batch), config.prior
    cond = {name: some.to(family.device) for name, some in cond.items()}
    return Prior(objective, own.weight, count, x.to(family.device), cond, rows.to(family.device), own.target)


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
