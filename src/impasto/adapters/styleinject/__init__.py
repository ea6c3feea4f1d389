"""StyleInject on a base: attached for training, saved as tensors, loaded, counted. The layer is in `layers`."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from impasto.adapters.base import PLAIN_SAMPLING, Adapter
from impasto.adapters.config import StyleInject
from impasto.adapters.lora import endings, ends
from impasto.adapters.styleinject.layers import TENSORS, StyleInjectLayer, initial_bound, tensor_shapes
from impasto.adapters.styleinject.tuner import SHARED, StyleInjectConfig, layer_settings
from impasto.adapters.tuners import add_saved, split_part
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.noise.random import generator

SETTINGS = "styleinject"  # key of a file's metadata


def attach(family: Family, config: StyleInject, seed: int) -> dict[str, nn.Parameter]:
    """Put a StyleInject called "default" on `family.denoiser`; returns its trained parameters by name, float32.

    A and the router are drawn per layer from (seed, layer name): the same on any device, with any other targets beside.
    With n = 1 no gradient reaches the router, which is there but not among them. Raises UserError, see `lora.endings`.
    """
    model = family.denoiser
    model.add_adapter(peft_config(resolve(family, config)), adapter_name="default")
    trained = {}
    for name, layer in model.named_modules():
        for tensor in TENSORS if isinstance(layer, StyleInjectLayer) else ():
            p = getattr(layer, tensor).get("default")
            if p is not None:
                p.data = initial(tensor, p, seed, f"{name.removesuffix('.base_layer')}.{tensor}")
                trained |= {f"{name}.{tensor}.default": p} if p.requires_grad else {}
    return trained


def initial(tensor: str, p: nn.Parameter, seed: int, name: str) -> Tensor:
    """Float32 values at the start: what is not 0 is uniform, drawn from (seed, name)."""
    bound = initial_bound(tensor, p.shape)
    if not bound or p.is_meta:
        return p.data.float()
    return ((2 * torch.rand(p.shape, generator=generator(seed, 0, name)) - 1) * bound).to(p.device)


def resolve(family: Family, config: StyleInject, model: nn.Module | None = None) -> StyleInject:
    """`config` with name endings as targets, see `lora.endings`."""
    return replace(config, targets=tuple(endings(family, config.targets, model)))


def peft_config(config: StyleInject) -> StyleInjectConfig:
    """PEFT's form of `config`, whose targets are name endings."""
    shared: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    return StyleInjectConfig(r=config.rank, lora_alpha=config.alpha, target_modules=set(config.targets), **shared)


def count(model: nn.Module, config: StyleInject) -> int:
    """Parameters of a StyleInject on `model` (on any device, also meta), targets by name endings."""
    return sum(map(math.prod, expected(model, config).values()))


def shapes(family: Family, config: StyleInject, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """`expected`, targets by kinds of layers too."""
    return expected(model, resolve(family, config, model))


def count_on(family: Family, config: StyleInject, model: nn.Module) -> int:
    """`count`, targets by kinds of layers too."""
    return count(model, resolve(family, config, model))


def only_matrices(family: Family, config: StyleInject, model: nn.Module) -> bool:
    """Whether all trained tensors are matrices: the stacked A_i are not."""
    return all(len(shape) == 2 for shape in shapes(family, config, model).values())


def expected(model: nn.Module, config: StyleInject) -> dict[str, tuple[int, ...]]:
    """Shapes of a StyleInject's tensors on `model`, "{layer}.{tensor}", seen through adapters that it carries."""
    shapes = {}
    for name, layer in model.named_modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if ends(name, config.targets) and isinstance(base, nn.Linear | nn.Conv2d):
            of = tensor_shapes(base, layer_settings(config, name))
            shapes |= {f"{name}.{tensor}": shape for tensor, shape in of.items()}
    return shapes


def state(family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors "{part}.{layer}.{tensor}", metadata) of the adapter "default", for one safetensors file."""
    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    settings = asdict(family.denoiser.peft_config["default"].settings)
    return {f"{family.part}.{name}": t.cpu() for name, t in tensors.items()}, {SETTINGS: json.dumps(settings)}


def load(pipe: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str, strength: float) -> None:
    """Put a saved StyleInject, frozen, into a diffusers pipeline, or into the model that it was trained on, as adapter
    `name` at the weight `strength`. Adapters that are active stay so, with their weights.

    Raises UserError when the file holds none, or one for another base.
    """
    config = read_settings(metadata)
    part, model, own = split_part(pipe, tensors)
    check_shapes(expected(model, config) if model else {}, {key: tuple(t.shape) for key, t in own.items()}, part)
    add_saved(model, peft_config(config), own, name, strength)


def read_settings(metadata: Mapping[str, str]) -> StyleInject:
    """The settings that `state` wrote. Raises UserError where there are none."""
    if SETTINGS not in metadata:
        raise UserError(f"the file holds no StyleInject adapter: its metadata lacks {SETTINGS!r}")
    try:
        known = json.loads(metadata[SETTINGS])
        return StyleInject(**known | {"targets": tuple(known["targets"])})
    except (UserError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the StyleInject settings in the file's metadata are damaged: {error}") from None


def check_shapes(base: Mapping[str, tuple[int, ...]], file: Mapping[str, tuple[int, ...]], part: str) -> None:
    """Raise UserError unless a file has the tensors that this base needs, in their shapes."""
    wrong = sorted(name for name in base.keys() | file.keys() if base.get(name) != file.get(name))
    if wrong or not file:
        first = f", {part}.{wrong[0]} first: {file.get(wrong[0])} for {base.get(wrong[0])}" if wrong else ""
        raise UserError(f"this StyleInject was not trained for this base: {len(wrong)} tensors do not fit{first}")


ADAPTER = Adapter(
    attach,
    count_on,
    only_matrices,
    kind="styleinject",
    mergeable=False,
    state=state,
    load=load,
    sampling=PLAIN_SAMPLING,
    shapes=shapes,
)
