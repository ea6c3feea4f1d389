"""Adapters: which weights move. ADAPTERS is the one table in which a name is looked up."""

from importlib import import_module
from typing import Any

from impasto.errors import UserError, nearest

ADAPTERS = {"lora": ("impasto.adapters.lora", "add", "low-rank updates B A of linear layers, the paper's choice")}


def adapter(name: str) -> Any:
    """`add(family, *, rank, alpha, targets, seed) -> parameters`. Raises UserError on an unknown name."""
    if name not in ADAPTERS:
        raise UserError(f"unknown adapter {name!r}: {nearest(name, list(ADAPTERS))}")
    module, function, _ = ADAPTERS[name]
    return getattr(import_module(module), function)
