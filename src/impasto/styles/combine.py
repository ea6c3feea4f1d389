"""Styles put together, and made smaller.

    merge:   sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ..] [A_1; A_2; ..]       exact, the ranks add up
    resize:  the best approximation of s B A of a lower rank R, its first R singular values (Eckart and Young 1936)

with s = alpha / rank. A product B A is never written out: with B = Q R and A^T = P S (QR decompositions) its singular
values are those of the small matrix R S^T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.interop.lora.write import Adapter, Lora


@dataclass(frozen=True)
class Loss:
    """What a resize costs: |B A - B' A'|_F / |B A|_F of the worst layer, of the mean one, and of all layers as one."""

    worst: float
    mean: float
    total: float
    worst_layer: str


def merge(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The sum of adapters of one architecture, each by its weight; layers that only some of them have stay theirs.

    Raises UserError when they belong to different bases, or when all weights are zero.
    """
    kinds = {adapter.architecture for adapter in adapters}
    if len(kinds) > 1:
        raise UserError(f"styles of different bases cannot be merged: they are for {', '.join(sorted(kinds))}")
    used = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight]
    if not used:
        raise UserError("all weights are zero: give at least one style a weight, as in runs/neon:0.7")
    layers: dict[str, Lora] = {}
    for layer in dict.fromkeys(layer for adapter, _ in used for layer in adapter.layers):
        own = [(adapter.layers[layer], weight) for adapter, weight in used if layer in adapter.layers]
        sizes = {(lora.up.shape[0], *lora.down.shape[1:]) for lora, _ in own}
        if len({(rows, columns, tuple(n for n in kernel if n > 1)) for rows, columns, *kernel in sizes}) < len(sizes):
            raise UserError(f"{layer} is a matrix in one style and a 1x1 convolution in another: give --base, a folder")
        if len(sizes) > 1:
            raise UserError(f"these styles are for bases of other widths: {layer} is {' and '.join(map(str, sizes))}")
        down = torch.cat([lora.down.float() for lora, _ in own])
        up = torch.cat([lora.up.float() * (lora.scale * weight) for lora, weight in own], dim=1)
        layers[layer] = Lora(down, up, float(len(down)))
    return Adapter(kinds.pop(), layers)


def resize(adapter: Adapter, rank: int) -> tuple[Adapter, Loss]:
    """Every layer at `rank` at most, B and A with the roots of the singular values each; computed in float64.

    A layer of that rank or less stays as it is, to the bit. Raises UserError when rank is below 1 or all are so small.
    """
    if rank < 1:
        raise UserError(f"rank must be at least 1, not {rank}")
    largest = max(lora.rank for lora in adapter.layers.values())
    if rank >= largest:
        raise UserError(f"rank {rank} is not below the style's own: its layers have {largest} at most")
    layers, errors, lost, whole = {}, {}, 0.0, 0.0
    for layer, lora in adapter.layers.items():
        layers[layer] = small = lora if lora.rank <= rank else truncated(lora, rank)
        a, b = halves(lora)
        a_small, b_small = halves(small)
        size = product_norm(a, b)
        gone = 0.0 if small is lora else product_norm(torch.cat([a, a_small]), torch.cat([b, -b_small], dim=1))
        errors[layer] = gone / size if size else 0.0
        lost, whole = lost + gone**2, whole + size**2
    worst = max(errors, key=errors.__getitem__)
    loss = Loss(errors[worst], sum(errors.values()) / len(errors), (lost / whole) ** 0.5 if whole else 0.0, worst)
    return Adapter(adapter.architecture, layers), loss


def halves(lora: Lora) -> tuple[Tensor, Tensor]:
    """A (r, in) and s B (out, r) as float64 matrices; a convolution's kernel counts as columns."""
    return lora.down.flatten(1).double(), lora.up.flatten(1).double() * lora.scale


def product_norm(a: Tensor, b: Tensor) -> float:
    """|b a|_F by the small factors of both."""
    return torch.linalg.matrix_norm(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).item()


def truncated(lora: Lora, rank: int) -> Lora:
    """The first `rank` singular values of s B A (all, where a side is smaller), float32, alpha = rank."""
    a, b = halves(lora)
    rank = min(rank, *a.shape, *b.shape)
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = values[:rank].sqrt()
    down = (root[:, None] * (v[:rank] @ q_a.T)).float().reshape(rank, *lora.down.shape[1:])
    up = (q_b @ u[:, :rank] * root).float().reshape(-1, rank, *lora.up.shape[2:])
    return Lora(down, up, float(rank))


def ranks(adapter: Adapter) -> list[int]:
    """The ranks that its layers have, each once."""
    return sorted({lora.rank for lora in adapter.layers.values()})
