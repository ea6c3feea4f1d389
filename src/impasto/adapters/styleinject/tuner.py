"""StyleInject inside PEFT: its configuration and its tuner."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from impasto.adapters.config import StyleInject
from impasto.adapters.lora import ends
from impasto.adapters.styleinject.layers import (
    Settings,
    StyleInjectConv2d,
    StyleInjectLayer,
    StyleInjectLinear,
    tensor_shapes,
)
from impasto.adapters.tuners import UnmergeableTuner, register

SHARED = ("n", "dma", "sta", "router_pool", "hyper", "variant")


class StyleInjectType(str, Enum):  # noqa: UP042 - as peft's own
    STYLEINJECT = "STYLEINJECT"


@dataclass
class StyleInjectConfig(PeftConfig):
    """PEFT's form of `adapters.config.StyleInject`.

    init_weights: False draws what starts at 0, too, for tests. The rest is as in PEFT's own configurations.
    """

    r: int = 32
    lora_alpha: float | None = None
    n: int = 16
    dma: bool = True
    sta: bool = True
    router_pool: str = "mean"
    hyper: str = "multiplicative"
    variant: str = "all"
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: str = "none"
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = StyleInjectType.STYLEINJECT  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")
        if isinstance(self.target_modules, str) and self.layers_pattern is not None:
            raise ValueError("`layers_pattern` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")
        _ = self.settings  # checks their ranges

    @property
    def settings(self) -> StyleInject:
        """Back in our form, `targets` sorted."""
        own: dict[str, Any] = {name: getattr(self, name) for name in SHARED}
        targets = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules or ()
        return StyleInject(rank=self.r, alpha=self.lora_alpha, targets=tuple(sorted(targets)), **own)


def layer_settings(of: StyleInject, name: str) -> Settings:
    """What an adapter is on the layer called `name`."""
    full = (of.dma or of.sta) and not ends(name, of.plain)
    n = of.n if full and of.dma else 1
    return Settings(of.rank, n, of.alpha or of.rank, full, of.sta, of.router_pool, of.hyper)


class StyleInjectModel(UnmergeableTuner):
    """Each adapter reads the frozen layer, and a LoRA around it keeps its names."""

    prefix = "styleinject_"
    tuner_layer_cls = StyleInjectLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - as in BaseTuner

    def _create_and_replace(
        self,
        peft_config: StyleInjectConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        while isinstance(target, BaseTunerLayer) and not isinstance(target, StyleInjectLayer):
            parent, target_name, target = target, "base_layer", getattr(target, "base_layer")  # noqa: B009
        of = layer_settings(peft_config.settings, current_key)
        if isinstance(target, StyleInjectLayer):
            target.update_layer(adapter_name, of, peft_config.init_weights, peft_config.inference_mode)
            return
        tensor_shapes(target, of)  # refuses layers that cannot carry it
        layer = (StyleInjectConv2d if isinstance(target, nn.Conv2d) else StyleInjectLinear)(target)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, of, peft_config.init_weights, peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


register(StyleInjectType.STYLEINJECT, StyleInjectConfig, StyleInjectModel)
