"""Optimisers: how a gradient becomes a step. OPTIMIZERS is the one table in which a name is looked up.

Each keeps its state as named tensors, so that a saved state is one safetensors file and a resumed run is the same run:
`KEY/NAME` is a tensor of parameter NAME, `KEY#/NAME` a number of it, `group#/I/KEY` a number of group I that has left
its default (Prodigy's estimate d).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from impasto.errors import UserError, extra, nearest
from impasto.optim.config import OptimConfig

BETAS = (0.9, 0.999)
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """build: makes it. state_bytes: of its state per trained weight, for the memory plan. about: one line."""

    build: Callable[[Groups, OptimConfig], Optimizer]
    state_bytes: float
    about: str


def adamw(groups: Groups, config: OptimConfig) -> Optimizer:
    """`p = p - lr m^ / (sqrt(v^) + 1e-8)`, Loshchilov & Hutter 2019, arXiv 1711.05101; without decay it is Adam."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay, fused=True)


def adamw8bit(groups: Groups, config: OptimConfig) -> Optimizer:
    """AdamW with both moments in 8 bits per block of 256 (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes.

    Tensors of fewer than 4,096 weights keep theirs in float32.
    """
    bitsandbytes = extra("bitsandbytes", "quant", "adamw8bit")
    return bitsandbytes.optim.AdamW8bit(groups, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay)


def prodigy(groups: Groups, config: OptimConfig) -> Optimizer:
    """Adam that estimates its own rate d from how far the weights have come: `p = p - lr d m^ / sqrt(v^)`.

    Mishchenko & Defazio 2024, arXiv 2306.06101, by prodigyopt, with bias correction and safeguarded warm-up (as the
    diffusers scripts advise). `lr` multiplies d and is 1 unless it is given. One d serves all groups.
    """
    prodigyopt = extra("prodigyopt", "prodigy", "prodigy")
    settings = {"betas": BETAS, "weight_decay": config.weight_decay}
    return prodigyopt.Prodigy(groups, lr=config.lr, use_bias_correction=True, safeguard_warmup=True, **settings)


def muon(groups: Groups, config: OptimConfig) -> Optimizer:
    """Momentum .95, made orthogonal by Newton-Schulz, for matrices: `p = p - lr .2 sqrt(max(rows, columns)) UV^T`.

    Jordan et al. 2024; the factor (Liu et al. 2025, arXiv 2502.16982, eq. 4) gives its steps the size of AdamW's, so
    that AdamW's learning rate serves. A LoRA's A and B are such matrices, unless its layer is a convolution.
    """
    return torch.optim.Muon(groups, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")


OPTIMIZERS = {
    "adamw": Choice(adamw, 8, "Adam with decoupled weight decay, float32 moments"),
    "adamw8bit": Choice(adamw8bit, 2, "the same with 8-bit moments: saves 6 bytes per trained weight"),
    "prodigy": Choice(prodigy, 16, "Adam that finds its own learning rate; lr multiplies it and is 1"),
    "muon": Choice(muon, 4, "orthogonalised momentum for matrices; takes AdamW's learning rate"),
}


def choice(name: str) -> Choice:
    """The optimiser called `name`. Raises UserError on an unknown name."""
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}: {nearest(name, list(OPTIMIZERS))}")
    return OPTIMIZERS[name]


def check(config: OptimConfig, device: str, rates: Mapping[str, float], matrices: bool = True) -> None:
    """Raise UserError where the optimiser cannot be had: unknown, not on `device`, its package missing, of several
    `rates` (see `build`), or of weights that are no `matrices`."""
    choice(config.optimizer)
    kind = device.split(":")[0]
    if config.optimizer == "adamw8bit":
        if kind not in ("cpu", "cuda"):
            raise UserError(f"adamw8bit does not run on {kind}: bitsandbytes has no optimiser for it; use adamw")
        extra("bitsandbytes", "quant", "adamw8bit")
    if config.optimizer == "prodigy":
        if any(rate != config.lr for rate in rates.values()):
            raise UserError("prodigy finds one rate for all weights: leave --text.lr out, or use adamw")
        extra("prodigyopt", "prodigy", "prodigy")
    if config.optimizer == "muon" and not matrices:
        raise UserError(
            "muon steps matrices only, and not all trained weights are (convolutions, StyleInject's stacked A): use "
            "adamw, or other --adapter.targets"
        )


def build(config: OptimConfig, named: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> Optimizer:
    """The config's optimiser over the parameters. rates: learning rates of those whose names begin so.

    A group's "scale" is its rate over `config.lr`: schedules multiply both. Raises UserError, see `check`.
    """
    device = next(iter(named.values())).device.type
    check(config, device, rates, all(p.ndim == 2 for p in named.values()))
    groups: Groups = []
    for prefix, rate in [*rates.items(), ("", config.lr)]:
        taken = [name for name in named if name.startswith(prefix) and (prefix or not name.startswith(tuple(rates)))]
        if taken:
            groups.append({"params": [named[name] for name in taken], "lr": rate, "scale": rate / config.lr})
    return choice(config.optimizer).build(groups, config)


def state_tensors(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The whole state of an optimiser as tensors, none of which shares memory with another."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, p in named.items():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.clone() if value.data_ptr() in seen else value
                seen.add(value.data_ptr())
            else:
                tensors[f"{key}#/{name}"] = number(value)
    for i, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if is_number(value) and key not in ("lr", "scale") and value != optimizer.defaults.get(key):
                tensors[f"group#/{i}/{key}"] = number(value)
    return tensors


def restore(optimizer: Optimizer, named: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """What `state_tensors` gave, put back; other tensors of a saved state are not looked at."""
    for path, tensor in state.items():
        key, _, name = path.partition("/")
        if key == "group#":
            index, _, key = name.partition("/")
            optimizer.param_groups[int(index)][key] = tensor.item()
        elif name in named and key not in ("adapter", "average"):
            p = named[name]
            value = tensor.item() if key.endswith("#") else tensor.to(p.device, copy=True)  # out of the file's buffer
            optimizer.state[p][key.removesuffix("#")] = value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> Tensor:
    """A Python number as a tensor that gives it back exactly."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
