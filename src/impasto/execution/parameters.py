"""The number of trained parameters of an adapter on a base, from configurations alone."""

import math
import re
from typing import Any

from impasto.adapters.base import adapter_of
from impasto.execution.memory import meta_model
from impasto.families.base import Family

INSIDE_BLOCK = re.compile(r".*?_blocks?\.(?:\d+\.)?(?:.*(?:transformer_blocks|resnets|attentions)\.\d+\.)?")
"""What precedes a layer's name within its innermost block: "attn1.to_q" is left of
"down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"."""


def count_parameters(family: Family, settings: Any) -> dict[str, Any]:
    """Trained parameters of an adapter, see `adapters.config`, on the denoiser of a base, whose weights are not read.

    Returns parameters, bytes (float32), denoiser_parameters, their share, and groups: layers of one name in one part of
    the denoiser (down_blocks, transformer_blocks, ...), each with its number of layers and parameters.
    Raises UserError where the settings are not for this base.
    """
    adapter, model = adapter_of(settings), meta_model(family)
    total = sum(p.numel() for p in model.parameters())
    trained = adapter.count(family, settings, model)
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for tensor, shape in (adapter.shapes(family, settings, model) if adapter.shapes else {}).items():
        layer = tensor.rpartition(".")[0]
        part, name = layer.partition(".")[0], INSIDE_BLOCK.sub("", layer, count=1)
        row = groups.setdefault((part, name), {"part": part, "layer": name, "layers": set(), "parameters": 0})
        row["layers"].add(layer)
        row["parameters"] += math.prod(shape)
    return {
        "parameters": trained,
        "bytes": 4 * trained,
        "denoiser_parameters": total,
        "share": trained / total,
        "groups": [row | {"layers": len(row["layers"])} for row in groups.values()],
    }
