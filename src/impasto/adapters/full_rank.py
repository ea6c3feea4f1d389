"""Full updates as a LoRA: `h = W x + B A x` with A the identity, frozen, and B of W's shape, zero at first.

B is the update of W itself, so that its steps are those of training W, and the file is a plain LoRA of the layers'
width. Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488) trains all keys and values of cross-attention so.
"""

import torch
from torch import Tensor, nn

from impasto.adapters import lora
from impasto.adapters.base import Adapter
from impasto.adapters.config import FullRankLoRA, LoRA
from impasto.errors import UserError
from impasto.families.base import Family


def as_lora(family: Family, settings: FullRankLoRA, model: nn.Module) -> LoRA:
    """The LoRA of the layers' input width. Raises UserError for convolutions and layers of several widths."""
    found = lora.adapted_layers(family, LoRA(targets=settings.targets), model)
    widths = {layer.in_features if isinstance(layer, nn.Linear) else 0 for layer in found.values()}
    if len(widths) > 1 or widths == {0}:
        raise UserError(
            "--adapter full-rank takes linear layers of one input width, such as --adapter.targets cross_attention_kv"
        )
    return LoRA(rank=widths.pop(), targets=settings.targets)


def attach(family: Family, settings: FullRankLoRA, seed: int) -> dict[str, nn.Parameter]:
    """See `lora.attach`; only the B are returned."""
    own = as_lora(family, settings, family.denoiser)
    names = lora.endings(family, settings.targets)
    parameters = lora.attach(family.denoiser, own.rank, None, names, seed)
    for name, p in parameters.items():
        if "lora_A" in name:
            nn.init.eye_(p)
            p.requires_grad_(False)
    if settings.block_first_token:
        for name, layer in family.denoiser.named_modules():
            if lora.ends(name, names):
                layer.register_forward_hook(detach_first_token)
    return {name: p for name, p in parameters.items() if p.requires_grad}


def detach_first_token(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output (B, L, D) of a layer, without gradient at the first of L tokens."""
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)


def count(family: Family, settings: FullRankLoRA, model: nn.Module) -> int:
    """Weights of the layers."""
    layers = lora.adapted_layers(family, as_lora(family, settings, model), model)
    return sum(layer.weight.numel() for layer in layers.values())


def shapes(family: Family, settings: FullRankLoRA, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the B by name."""
    layers = lora.adapted_layers(family, as_lora(family, settings, model), model)
    return {f"{name}.lora_B": tuple(layer.weight.shape) for name, layer in layers.items()}


def only_matrices(family: Family, settings: FullRankLoRA, model: nn.Module) -> bool:
    return True


ADAPTER = Adapter(attach, count, only_matrices, kind="lora", mergeable=True, shapes=shapes)
