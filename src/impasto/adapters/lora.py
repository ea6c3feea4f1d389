"""LoRA: `h = W x + (alpha / r) B A x`, W frozen, A of shape (r, in) drawn from N(0, 1/r^2), B of shape (out, r) zero.

On a convolution A is one with W's kernel, stride and padding, (r, in, k, k), and B a 1 x 1 one, (out, r, 1, 1): what
LyCORIS and sd-scripts call LoCon.

Hu et al. 2021, arXiv 2106.09685; the init is peft's "gaussian", which the Style-Friendly SNR sampler uses with
r = alpha = 32 on the attention of both streams.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from impasto.adapters.base import Adapter
from impasto.adapters.config import LoRA
from impasto.errors import UserError, nearest
from impasto.families.base import Family
from impasto.noise.random import generator


def endings(family: Family, targets: Sequence[str], model: nn.Module | None = None) -> list[str]:
    """Layer name endings for `targets`, each a kind of layers of this family or an ending itself, sorted.

    model: the denoiser, on any device, also meta; the family's own by default. Raises UserError when there is no
    target, and when one is no linear or convolution layer of it.
    """
    if not targets:
        raise UserError(f"no targets, so nothing would be trained: name layers, {', '.join(family.kinds)} for example")
    whole: nn.Module = family.denoiser if model is None else model
    layers = [name for name, layer in whole.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    found = set()
    for target in targets:
        if any(ends(name, [target]) for name in layers):
            found.add(target)
        elif target in family.kinds:
            found.update(family.modules(target))
        else:
            known = [*family.kinds, *sorted({".".join(name.split(".")[3:]) or name for name in layers})]
            raise UserError(f"target {target!r} matches no layer: {nearest(target, known)}")
    return sorted(found)


def ends(name: str, found: Sequence[str]) -> bool:
    """Whether a layer is one of those with these endings, as peft takes them."""
    return any(name == ending or name.endswith(f".{ending}") for ending in found)


def attach(
    model: Any, rank: int, alpha: float | None, targets: list[str], seed: int, prefix: str = ""
) -> dict[str, nn.Parameter]:
    """Put a LoRA called "default" on the layers of a frozen model whose names end so; its parameters, float32 whatever
    W is, under their names there behind `prefix`.

    A is drawn per layer from (seed, that name): the same adapter on any device and with any other targets beside.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or rank,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian",
        target_modules=targets,
    )
    config.target_modules = sorted(config.target_modules or [])  # a set is saved in another order each time
    model.add_adapter(config, adapter_name="default")
    parameters = {prefix + name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, p in parameters.items():
            p.requires_grad_(True)
            p.data = p.data.float()
            if "lora_A" in name:
                p.copy_(torch.randn(p.shape, generator=generator(seed, 0, name)) / rank)
    return parameters


def add(family: Family, settings: LoRA, seed: int) -> dict[str, nn.Parameter]:
    """Put a LoRA on `family.denoiser`; returns its parameters by name, see `attach`."""
    return attach(family.denoiser, settings.rank, settings.alpha, endings(family, settings.targets), seed)


def adapted_layers(family: Family, settings: LoRA, model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of `model` that get an update."""
    names = endings(family, settings.targets, model)
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return {name: layer for name, layer in layers if ends(name, names)}


def shapes(family: Family, settings: LoRA, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of its tensors on `model`, "{layer}.{tensor}"; a convolution's A has its kernel."""
    found: dict[str, tuple[int, ...]] = {}
    for name, layer in adapted_layers(family, settings, model).items():
        rows, *columns = layer.weight.shape
        found |= {f"{name}.lora_A": (settings.rank, *columns), f"{name}.lora_B": (rows, settings.rank)}
    return found


def count(family: Family, settings: LoRA, model: nn.Module) -> int:
    """rank (rows + columns) per layer; a convolution's kernel counts as columns."""
    return sum(map(math.prod, shapes(family, settings, model).values()))


def only_matrices(family: Family, settings: LoRA, model: nn.Module) -> bool:
    return not any(isinstance(layer, nn.Conv2d) for layer in adapted_layers(family, settings, model).values())


ADAPTER = Adapter(add, count, only_matrices, kind="lora", mergeable=True, shapes=shapes)


@contextmanager
def disabled(denoiser: Any) -> Iterator[None]:
    """The base model itself: adapters off."""
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()
