"""What adapters of our own share inside PEFT: scales, the refusal to merge, names in files, loading, registration.

PEFT's enum of types is closed, so `register_peft_method` refuses other names; an own type and three entries in its
tables do what that does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn

from impasto.errors import UserError


class UnmergeableLayer(BaseTunerLayer):
    """A layer whose adapters cannot be added to the frozen weight; `not_mergeable` says why. scaling: the strength of
    each adapter."""

    not_mergeable: ClassVar[str]
    scaling: dict[str, float]

    def set_scale(self, adapter: str, scale: float) -> None:
        """As diffusers' `set_adapters` calls it."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale

    def scale_layer(self, scale: float) -> None:
        for name in self.scaling.keys() & self.active_adapters:
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        for name in self.scaling.keys() & self.active_adapters:
            self.scaling[name] = self.scaling[name] / scale if scale else 1.0

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise UserError(self.not_mergeable)

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class UnmergeableTuner(BaseTuner):
    """A tuner of such layers, each around the frozen layer itself, inside any other adapter that the layer carries."""

    tuner_layer_cls: Any
    prefix: str

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """In files a layer has its own name, also where another adapter is around it."""
        key = super()._remove_adapter_name_from_key(key, adapter_name)
        return key.replace(f".base_layer.{cls.prefix}", f".{cls.prefix}")

    def _check_merge_allowed(self) -> None:
        raise UserError(self.tuner_layer_cls.not_mergeable)


def register(kind: Any, config: Any, tuner: Any) -> None:
    """Make PEFT find a kind of adapter. kind: a member of an own enum."""
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = tuner.prefix


def split_part(pipe: Any, tensors: Mapping[str, Tensor]) -> tuple[str, Any, dict[str, Tensor]]:
    """(part, model, tensors by their names there) of tensors "{part}.{name}" for a pipeline, whose part it is (None
    where it has none), or for the model itself."""
    part = next(iter(tensors), "").partition(".")[0]
    model = pipe if isinstance(pipe, nn.Module) else getattr(pipe, part, None)
    return part, model, {key.removeprefix(f"{part}."): t for key, t in tensors.items()}


def add_saved(model: Any, config: Any, tensors: Mapping[str, Tensor], name: str, strength: float) -> None:
    """Put a saved adapter, frozen, on a model as adapter `name` at a strength. Adapters that are active stay so, with
    their strengths."""
    known = getattr(model, "peft_config", {})
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    active = dict.fromkeys(adapter for layer in layers for adapter in layer.active_adapters if adapter in known)
    model.add_adapter(config, adapter_name=name)
    set_peft_model_state_dict(model, dict(tensors), adapter_name=name)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter([*active, name])
        if isinstance(layer, UnmergeableLayer):
            layer.set_requires_grad(name, False)
            layer.set_scale(name, strength)
