"""Preparing: pictures to latents and captions to embeddings, once, kept in the cache under the hash of what they show.

A cache file is named by all that it depends on (file bytes, or prompt and length; size; base weights), and tells it
again inside: a changed picture, caption, size or base can never read an old one, and a pair is made from what the
two were asked for, never from their places in two lists.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto.data.references import Reference
from impasto.families.base import Condition, Family
from impasto.paths import atomic, cache_dir

VERSION = 1  # of what is done to a picture and to a prompt


@dataclass(frozen=True)
class Prepared:
    """N pairs: latents x_NCHW, and per text length the conditions of the N captions and its share of the batches."""

    x: Tensor
    conds: dict[int, Condition]
    shares: dict[int, float]

    def to(self, device: torch.device | str) -> "Prepared":
        conds = {n: {name: t.to(device) for name, t in cond.items()} for n, cond in self.conds.items()}
        return replace(self, x=self.x.to(device), conds=conds)


def prepare(family: Family, pairs: Sequence[tuple[Reference, str]], size: int) -> Prepared:
    """Latents and text embeddings of all pairs; what is in the cache needs neither VAE nor text encoders."""
    x = torch.cat([latent(family, reference, size) for reference, _ in pairs])
    conds = {length: stack([text(family, caption, length) for _, caption in pairs]) for length in family.text_lengths}
    return Prepared(x, conds, dict(family.text_lengths))


def latent(family: Family, reference: Reference, size: int) -> Tensor:
    """(1, C, h, w), float32."""
    key = {"image": reference.sha256, "size": size, "base": family.hash}
    return cached(key, lambda: {"x": family.encode_image(reference.pixels(size)).float()})["x"]


def text(family: Family, prompt: str, length: int) -> Condition:
    """The condition of one prompt, one row."""
    key = {"prompt": prompt, "length": length, "base": family.hash}
    return cached(key, lambda: {name: t.float() for name, t in family.encode_prompt([prompt], length).items()})


def stack(conds: Sequence[Condition]) -> Condition:
    """Rows of several prompts as one condition."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def cached(key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returns for `key`, on the CPU; from the cache when they were made before."""
    told = json.dumps(key | {"version": VERSION}, sort_keys=True)
    file = cache_dir("prepared", hashlib.sha256(told.encode()).hexdigest() + ".safetensors")
    found = read(file, told)
    if found is None:
        found = {name: t.detach().cpu().contiguous() for name, t in make().items()}
        with atomic(file) as temporary:
            save_file(found, temporary, metadata={"key": told})
    return found


def read(file: Path, told: str) -> dict[str, Tensor] | None:
    """The tensors of a cache file, or None when it is absent, damaged, or of another key."""
    try:
        with safe_open(file, "pt") as tensors:
            if (tensors.metadata() or {}).get("key") != told:
                return None
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
