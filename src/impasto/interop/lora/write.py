"""Write LoRA files: per layer `W += (alpha / r) B A` with A "down" (r, in) and B "up" (out, r).

`write` converts to any of the layouts (see layouts.py) exactly: where q, k and v are one layer, their LoRAs become
blocks of its B; `unfuse` separates them by the columns that each part uses. `read.read` is the inverse.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from impasto.interop.lora.layouts import DENOISER, SD2_TEXT, SWAPPED, TEXT_ENCODERS, names, part_widths

ADAPTER_METADATA = "lora_adapter_metadata"
"""diffusers' metadata key for the configs of a file's LoRAs, including alpha."""

OLDER_TEXT_HALVES = ("lora_linear_layer.down", "lora_linear_layer.up")
"""Names by which diffusers reads a text encoder's LoRA that has no attention layer: 0.42 knows lora_A and lora_B there
by the attention layers alone (`convert_state_dict_to_peft`: "Could not automatically infer state dict type")."""


class Lora(NamedTuple):
    """down (r, in, *kernel), up (out, r, *ones), any float dtype; adds alpha / r up down to W."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def folded(self) -> "Lora":
        """The same with alpha = rank, so that readers cannot misinterpret alpha; float32 if the scale is not 1."""
        return self if self.alpha == self.rank else Lora(self.down, self.up.float() * self.scale, float(self.rank))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution, () for a matrix."""
        return tuple(self.down.shape[2:])

    def with_kernel(self, kernel: tuple[int, ...]) -> "Lora":
        """The same for a layer with that kernel, by `same_kernel`: a 1x1 convolution and a matrix are the same map."""
        if self.kernel == kernel:
            return self
        down, up = self.down, self.up
        return self._replace(
            down=down.reshape(*down.shape[:2], *kernel), up=up.reshape(*up.shape[:2], *(1 for _ in kernel))
        )


def same_kernel(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two kernels are equal, or a 1x1 and that of a matrix, ()."""
    return one == other or {*one, *other} == {1}


@dataclass(frozen=True)
class Adapter:
    """architecture: flux, sd3, sdxl or sd15. layers: by diffusers' names with the component, "transformer.…"."""

    architecture: str
    layers: dict[str, Lora]

    @property
    def components(self) -> list[str]:
        return sorted({layer.partition(".")[0] for layer in self.layers})


def unfuse(lora: Lora, parts: int) -> list[Lora | None]:
    """The LoRAs of a fused layer's parts, each with the columns of B that it uses; None for a part without LoRA."""
    if parts == 1:
        return [lora]
    result: list[Lora | None] = []
    for up in lora.up.split(part_widths(parts, lora.up.shape[0], lora.down.shape[1])):
        used = up.ne(0).any(dim=0)
        down, rank = lora.down[used], int(used.sum())
        result.append(Lora(down, up[:, used], lora.scale * rank) if rank else None)
    return result


def fuse(parts: list[Lora | None], columns: int) -> Lora:
    """The LoRA of a fused layer from those of its parts: ranks are added, B is block-wise.

    Parts with equal A (an unfused LoRA) share it. columns: of the layer.
    """
    present = [part for part in parts if part is not None]
    if len({part.scale for part in present}) > 1:
        present = [part.folded() for part in present]
        parts = [part.folded() if part is not None else None for part in parts]
    first = present[0]
    ups = {part.up.dtype for part in present}
    kind = first.up.dtype if len(ups) == 1 else torch.float32
    if len(present) == len(parts) and all(torch.equal(part.down, first.down) for part in present):
        return Lora(first.down, torch.cat([part.up.to(kind) for part in present]), first.alpha)
    rows = fused_rows(parts, columns)
    rank = sum(part.rank for part in present)
    up = torch.zeros(sum(rows), rank, dtype=kind, device=first.up.device)
    row = column = 0
    for part, n in zip(parts, rows, strict=True):
        if part is not None:
            up[row : row + n, column : column + part.rank] = part.up
            column += part.rank
        row += n
    return Lora(torch.cat([part.down for part in present]), up, first.scale * rank)


def fused_rows(parts: list[Lora | None], columns: int) -> list[int]:
    """Rows of each part, also without a LoRA: q, k and v are equal, FLUX's MLP is four times as wide."""
    if len(parts) == 4:
        return [columns, columns, columns, parts[3].up.shape[0] if parts[3] is not None else 4 * columns]
    return [next(part.up.shape[0] for part in parts if part is not None)] * len(parts)


def swap(name: str, lora: Lora) -> Lora:
    """Convert between (shift, scale) and (scale, shift) rows, see layouts.SWAPPED."""
    if not name.endswith(SWAPPED) or lora.up.shape[0] != 2 * lora.down.shape[1]:
        return lora
    return lora._replace(up=torch.cat([*reversed(lora.up.chunk(2))]))


def write(adapter: Adapter, layout: str, *, layers_per_block: int = 2) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file in a layout; the metadata holds alpha if the layout needs it there."""
    if layout == "diffusers":
        layers = {layer: lora.folded() for layer, lora in adapter.layers.items()}
        attending = {layer.partition(".")[0] for layer in layers if ".self_attn." in layer}
        tensors = {}
        for layer, lora in layers.items():
            component = layer.partition(".")[0]
            older = component.startswith("text_encoder") and component not in attending
            down, up = OLDER_TEXT_HALVES if older else ("lora_A", "lora_B")
            tensors |= {f"{layer}.{down}.weight": lora.down, f"{layer}.{up}.weight": lora.up}
        return contiguous(tensors), {ADAPTER_METADATA: json.dumps(configs(layers), indent=2, sort_keys=True)}
    tensors = {}
    for layer, lora in published(unify_alpha(adapter), layout, layers_per_block).items():
        tensors[f"{layer}.lora_down.weight"] = lora.down
        tensors[f"{layer}.lora_up.weight"] = lora.up
        tensors[f"{layer}.alpha"] = torch.tensor(lora.alpha)
    return contiguous(tensors), {}


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies for safetensors: on the CPU, contiguous, without shared memory."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def configs(layers: Mapping[str, Lora]) -> dict[str, Any]:
    """peft's LoraConfig of each component, with diffusers' packed keys ("transformer.r"); alpha = rank."""
    result: dict[str, Any] = {}
    for component in sorted({layer.partition(".")[0] for layer in layers}):
        ranks = {k.partition(".")[2]: lora.rank for k, lora in layers.items() if k.startswith(f"{component}.")}
        ranks = {name.removeprefix("text_model."): rank for name, rank in ranks.items()}
        r = max(set(ranks.values()), key=list(ranks.values()).count)
        whole = "" if component.startswith("text_encoder") else "^"  # CLIP's layers may be in a "text_model"
        others = {f"{whole}{name}": rank for name, rank in ranks.items() if rank != r}
        config = {"r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": others, "peft_type": "LORA"}
        result |= {f"{component}.{key}": value for key, value in config.items()}
        result[f"{component}.target_modules"] = sorted(ranks)
    return result


def unify_alpha(adapter: Adapter) -> Adapter:
    """Use the most common alpha for all layers of a U-Net or CLIP; B is rescaled in the others.

    diffusers 0.42.1 applies the most common alpha to all layers of such a component in a kohya file, with only a
    warning.
    """
    layers = dict(adapter.layers)
    for component in set(adapter.components) - {"transformer"}:
        own = [layer for layer in layers if layer.startswith(f"{component}.")]
        alphas = [layers[layer].alpha for layer in own]
        alpha = max(set(alphas), key=alphas.count)
        for layer in own:
            down, up, old = layers[layer]
            if old != alpha:
                layers[layer] = Lora(down, up.float() * (old / alpha), alpha)
    return Adapter(adapter.architecture, layers)


def published(adapter: Adapter, layout: str, layers_per_block: int) -> dict[str, Lora]:
    """The layers by kohya's or ComfyUI's names, fused as they are there."""
    architecture = adapter.architecture
    known, denoiser = names(architecture, layers_per_block), DENOISER[architecture]
    result: dict[str, Lora] = {}
    wholes: dict[str, list[Lora | None]] = {}
    for layer, lora in adapter.layers.items():
        component, _, name = layer.partition(".")
        if component != denoiser:
            kohya, comfyui = TEXT_ENCODERS[architecture][component]
            if architecture == "sd15" and min(lora.down.shape[1], lora.up.shape[0]) == SD2_TEXT:
                comfyui = "clip_h"
            prefix = f"{kohya}_" if layout == "kohya" else f"text_encoders.{comfyui}.transformer."
            result[prefix + (name.replace(".", "_") if layout == "kohya" else name)] = lora
        elif architecture == "sd15" and layout == "kohya":
            result[f"lora_unet_{name.replace('.', '_')}"] = lora
        else:
            whole, i = known.place[name]
            parts = wholes.setdefault(whole, [None] * len(known.fused[whole]))
            parts[i] = swap(name, lora)
    for whole, parts in wholes.items():
        name = f"lora_unet_{whole.replace('.', '_')}" if layout == "kohya" else f"diffusion_model.{whole}"
        lora = next(part for part in parts if part is not None)
        lora = lora if len(parts) == 1 else fuse(parts, lora.down.shape[1])
        result[name] = lora.folded() if whole.startswith("final_layer") else lora  # diffusers ignores its alpha
    return result
