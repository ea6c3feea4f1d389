"""FineStyle's adapter: a residual bottleneck behind the keys and values of cross-attention.

    K = a_k(W_k e),  V = a_v(W_v e),   a(z) = z + gelu(z Wd) Wu

with e the text tokens, W_k and W_v frozen, Wd (D, H) drawn from N(0, .02^2) truncated at two standard deviations, Wu
(H, D) zero. In an MM-DiT the layers are those of the text stream (`add_k_proj`, `add_v_proj`). Shared: one pair of
matrices for all layers of a kind and a width, and in layer l

    Wd_l = Wd + bd_l,  Wu_l = Wu + bu_l,   bd_l (1, H) and bu_l (1, D) added to every row, zero at the start.

FineStyle: Zhang et al., NeurIPS 2024 (keys and values of cross-attention); StyleDrop: Sohn et al. 2023,
arXiv 2306.00983, appendix (bottleneck, initialisation, sharing). Several adapters add up, each with its strength s_i:
z + sum_i s_i gelu(z Wd_i) Wu_i. As a(z) is not linear in e, no weight equals it: merging is refused.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.functional import gelu

from impasto.adapters.base import Adapter
from impasto.adapters.config import LOCATIONS, KVBottleneck
from impasto.adapters.lora import endings, ends
from impasto.adapters.tuners import UnmergeableLayer, UnmergeableTuner, add_saved, register, split_part
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.noise.random import generator

METADATA = "kv_bottleneck"  # key of a file's metadata that holds the settings
STD = 0.02
NOT_MERGEABLE = "a key/value bottleneck cannot be merged into the base: z + gelu(z Wd) Wu is not linear in its input"
DOWN, UP, DOWN_BIAS, UP_BIAS = (f"kv_bottleneck_{name}" for name in ("down", "up", "down_bias", "up_bias"))
TENSORS = (DOWN, UP, DOWN_BIAS, UP_BIAS)


def attach(family: Family, config: KVBottleneck, seed: int) -> dict[str, nn.Parameter]:
    """Put a bottleneck called "default" on `family.denoiser`; returns its parameters by name, float32.

    Wd is drawn per layer from (seed, layer name): the same on any device, at any other location beside.
    """
    model = family.denoiser
    model.add_adapter(peft_config(family, config), adapter_name="default")
    trained = {}
    for name, layer in model.named_modules():
        for tensor in TENSORS if isinstance(layer, KVBottleneckLayer) else ():
            if "default" in (held := getattr(layer, tensor)):
                p = held["default"]
                p.data = p.data.float()
                if tensor == DOWN and not p.is_meta:
                    drawn = torch.empty(p.shape)
                    random = generator(seed, 0, f"{name.removesuffix('.base_layer')}.{tensor}")
                    p.data = nn.init.trunc_normal_(drawn, 0, STD, -2 * STD, 2 * STD, random).to(p.device)
                trained[f"{name}.{tensor}.default"] = p
    return trained


def targets(family: Family, config: KVBottleneck) -> list[str]:
    """Name endings of the layers that carry it."""
    return endings(family, LOCATIONS[config.location])


def count(model: nn.Module, config: KVBottleneck, found: Sequence[str]) -> int:
    """Parameters of a bottleneck on the layers of `model` (on any device, also meta) with these name endings."""
    return sum(map(math.prod, expected(model, config, found).values()))


def expected(model: nn.Module, config: KVBottleneck, found: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of its tensors on `model`, "{layer}.{tensor}", seen through adapters that it carries."""
    shapes, owners = {}, set()
    for name, layer in model.named_modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if ends(name, found) and isinstance(base, nn.Linear):
            group = group_of(name, base, found)
            own = tensor_shapes(base.out_features, config.dim, config.shared, config.shared and group in owners)
            owners.add(group)
            shapes |= {f"{name}.{tensor}": shape for tensor, shape in own.items()}
    return shapes


def group_of(name: str, layer: nn.Linear, found: Sequence[str]) -> tuple[str, int]:
    """(ending of its name without numbers, width): layers of one group share their matrices."""
    ending = next(ending for ending in found if ends(name, [ending]))
    return ".".join(part for part in ending.split(".") if not part.isdigit()), layer.out_features


def tensor_shapes(width: int, dim: int, shared: bool, owned: bool) -> dict[str, tuple[int, ...]]:
    """What one layer holds. owned: the shared matrices are another layer's."""
    matrices = {} if owned else {DOWN: (width, dim), UP: (dim, width)}
    return matrices | ({DOWN_BIAS: (1, dim), UP_BIAS: (1, width)} if shared else {})


def state(family: Family) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors "{part}.{layer}.{tensor}", metadata) of the adapter "default", for one safetensors file."""
    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    config = family.denoiser.peft_config["default"]
    settings = asdict(config.settings) | {"targets": sorted(config.target_modules)}
    return {f"{family.part}.{name}": t.cpu().contiguous() for name, t in tensors.items()}, {
        METADATA: json.dumps(settings)
    }


def load(pipe: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str, strength: float) -> None:
    """Put a saved bottleneck, frozen, into a diffusers pipeline, or into the model that it was trained on, as adapter
    `name` at the weight `strength`. Adapters that are active stay so, with their weights.

    Raises UserError when the file holds none, or one for another base.
    """
    settings, found = read_settings(metadata)
    _, model, own = split_part(pipe, tensors)
    check_shapes(expected(model, settings, found) if model else {}, {key: tuple(t.shape) for key, t in own.items()})
    add_saved(model, config_of(settings, found), own, name, strength)


def read_settings(metadata: Mapping[str, str]) -> tuple[KVBottleneck, list[str]]:
    """(settings, name endings) that `state` wrote. Raises UserError where there are none."""
    if METADATA not in metadata:
        raise UserError(f"the file holds no key/value bottleneck: its metadata lacks {METADATA!r}")
    try:
        known = json.loads(metadata[METADATA])
        found = [str(ending) for ending in known.pop("targets")]
        return KVBottleneck(**known), found
    except (UserError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the key/value bottleneck's settings in the file's metadata are damaged: {error}") from None


def check_shapes(base: Mapping[str, tuple[int, ...]], file: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless a file has the tensors that this base needs, in their shapes."""
    wrong = sorted(name for name in base.keys() | file.keys() if base.get(name) != file.get(name))
    if wrong or not file:
        first = f", {wrong[0]} first: {file.get(wrong[0])} for {base.get(wrong[0])}" if wrong else ""
        raise UserError(f"this key/value bottleneck was not trained for this base: {len(wrong)} tensors differ{first}")


class KVBottleneckLayer(nn.Module, UnmergeableLayer):
    """A linear layer W with bottlenecks behind it. scaling: the strength s of each adapter. owner: the layer that holds
    an adapter's shared matrices, where that is another one."""

    not_mergeable = NOT_MERGEABLE
    adapter_layer_names = TENSORS
    other_param_names = ("scaling", "owner")
    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling: dict[str, float] = {}
        self.owner: dict[str, KVBottleneckLayer] = {}
        for tensor in TENSORS:
            setattr(self, tensor, nn.ParameterDict())
        self._disable_adapters, self.merged_adapters = False, []

    def update_layer(
        self, name: str, config: KVBottleneck, owner: "KVBottleneckLayer | None", init: bool, inference_mode: bool
    ) -> None:
        """Add an adapter. init: with the frozen layer's output; else what would be 0 is drawn, too."""
        self.scaling[name] = 1.0
        if owner is not None:
            self.owner[name] = owner
        base: Any = self.get_base_layer()
        for tensor, shape in tensor_shapes(base.out_features, config.dim, config.shared, owner is not None).items():
            p = nn.Parameter(torch.zeros(shape))
            if tensor == DOWN or not init:
                nn.init.trunc_normal_(p, 0, STD, -2 * STD, 2 * STD)
            getattr(self, tensor)[name] = p
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """(Wd (D, H), Wu (H, D)) of an adapter on this layer."""
        holder = self.owner.get(name, self)
        down, up = getattr(holder, DOWN)[name], getattr(holder, UP)[name]
        if name in (bias := getattr(self, DOWN_BIAS)):
            down, up = down + bias[name], up + getattr(self, UP_BIAS)[name]
        return down, up

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        z = self.base_layer(x, *args, **kwargs)
        result = z
        names = [] if self.disable_adapters else [name for name in self.active_adapters if self.scaling.get(name)]
        for name in sorted(names):  # one order: the sum rounds alike, however the adapters were activated
            down, up = self.matrices(name)
            result = result + self.scaling[name] * (gelu(z.to(down.dtype) @ down) @ up)
        return result.to(z.dtype)

    def __repr__(self) -> str:
        return f"kv_bottleneck.{super().__repr__()}"


class KVBottleneckType(str, Enum):  # noqa: UP042 - as peft's own
    KV_BOTTLENECK = "KV_BOTTLENECK"


@dataclass
class KVBottleneckConfig(PeftConfig):
    """PEFT's form of `adapters.config.KVBottleneck`. init_weights: False draws what starts at 0, too, for tests."""

    dim: int = 4
    shared: bool = False
    location: str = "kv"
    target_modules: list[str] | set[str] | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = KVBottleneckType.KV_BOTTLENECK  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        _ = self.settings  # checks their ranges

    @property
    def settings(self) -> KVBottleneck:
        return KVBottleneck(dim=self.dim, shared=self.shared, location=self.location)


def peft_config(family: Family, config: KVBottleneck) -> KVBottleneckConfig:
    """PEFT's form of `config` on a family."""
    return config_of(config, targets(family, config))


def config_of(config: KVBottleneck, found: Sequence[str]) -> KVBottleneckConfig:
    return KVBottleneckConfig(**asdict(config), target_modules=set(found))


class KVBottleneckModel(UnmergeableTuner):
    prefix = "kv_bottleneck_"
    tuner_layer_cls = KVBottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - as in BaseTuner

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.owners: dict[tuple[str, int], KVBottleneckLayer] = {}

    def _create_and_replace(
        self,
        peft_config: KVBottleneckConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        while isinstance(target, BaseTunerLayer) and not isinstance(target, KVBottleneckLayer):
            parent, target_name, target = target, "base_layer", getattr(target, "base_layer")  # noqa: B009
        layer = target if isinstance(target, KVBottleneckLayer) else KVBottleneckLayer(target)
        base: Any = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            raise UserError(f"a key/value bottleneck goes behind linear layers, and {current_key} is not one")
        owner = None
        if peft_config.shared:
            group = group_of(current_key, base, sorted(peft_config.target_modules or ()))
            owner = self.owners.setdefault(group, layer)
        if layer is not target:
            layer._active_adapter = adapter_name
        owner = None if owner is layer else owner
        layer.update_layer(
            adapter_name, peft_config.settings, owner, peft_config.init_weights, peft_config.inference_mode
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)


register(KVBottleneckType.KV_BOTTLENECK, KVBottleneckConfig, KVBottleneckModel)


def count_on(family: Family, config: KVBottleneck, model: nn.Module) -> int:
    """`count` on the layers of the settings' location."""
    return count(model, config, endings(family, LOCATIONS[config.location], model))


def shapes(family: Family, config: KVBottleneck, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """`expected` on the layers of the settings' location."""
    return expected(model, config, endings(family, LOCATIONS[config.location], model))


def only_matrices(family: Family, config: KVBottleneck, model: nn.Module) -> bool:
    """Whether all tensors are matrices: shared ones have biases too."""
    return all(len(shape) == 2 for shape in shapes(family, config, model).values())


ADAPTER = Adapter(
    attach, count_on, only_matrices, kind="kv-bottleneck", mergeable=False, state=state, load=load, shapes=shapes
)
