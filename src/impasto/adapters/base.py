"""The contract of an adapter: what a row of ADAPTERS builds on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from impasto.adapters import ADAPTERS
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.registry import name_of


@dataclass(frozen=True)
class Adapter:
    """How an adapter of one kind is put on a denoiser, estimated and saved. settings: of its class.

    Attributes:
        attach: (family, settings, seed) -> trainable parameters by name, float32; the adapter is called "default".
        count: (family, settings, model) -> number of trainable weights on `model`, which may be on the meta device;
            raises UserError where the settings are not for it.
        only_matrices: (family, settings, model) -> whether all of these are matrices, as Muon needs them.
        kind: Of its part in a style folder.
        mergeable: Whether it can be added to the base's weights.
        state: family -> (tensors, metadata) of one safetensors file. None for a plain LoRA, which diffusers itself
            saves and loads.
        load: (pipeline, tensors, metadata, name, strength) puts them into a diffusers pipeline as adapter `name`;
            UserError where they do not fit.
        shapes: (family, settings, model) -> shapes of the weights by "{layer}.{tensor}", where the adapter has layers.
        replaces_base: The base's own weights are trained, so that nothing can be compared with it.
        write_base: (family, style folder, file of the weights) makes the folder a diffusers folder.
        sampling: Keys of `StyleDefaults` that do not follow the base's card, which has them for LoRA.
    """

    attach: Callable[[Family, Any, int], dict[str, nn.Parameter]]
    count: Callable[[Family, Any, nn.Module], int]
    only_matrices: Callable[[Family, Any, nn.Module], bool]
    kind: str
    mergeable: bool
    state: Callable[[Family], tuple[dict[str, Tensor], dict[str, str]]] | None = None
    load: Callable[[Any, dict[str, Tensor], dict[str, str], str, float], None] | None = None
    shapes: Callable[[Family, Any, nn.Module], Mapping[str, tuple[int, ...]]] | None = None
    replaces_base: bool = False
    write_base: Callable[[Family, Path, Path], None] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


PLAIN_SAMPLING = {"strength": 1.0, "style_guidance": 0.0, "base_guidance": 0.0, "negative": ""}
"""`Adapter.sampling` of adapters that are sampled as plain diffusers does, whatever the base's card says for LoRA."""


def adapter_of(settings: Any) -> Adapter:
    """The adapter of a settings object."""
    return ADAPTERS[name_of(ADAPTERS, settings)].builder


def check_keeps_base(settings: Any, flags: str) -> None:
    """Raise UserError where these settings train the base's own weights, with which a guidance compares. flags: those
    that leave the comparison out."""
    if adapter_of(settings).replaces_base:
        raise UserError(
            "this adapter trains the base's own weights, with which the weights of the guidance compare: "
            f"{flags}, or --adapter lora"
        )
