"""The cache of what was computed from pictures and prompts: one safetensors file per thing, under the hash of its key.

A file is named by all that it depends on, and tells it again inside: what belongs to another picture, caption, size or
base can never be read by mistake.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto.files import atomic, cache_dir

MAPPED = 2**18  # bytes: smaller tensors are read
MOST = 30_000  # files that a process maps; the system allows some 65,000, and others map as well
COUNT = itertools.count()  # of those mapped so far
VERSION = 4  # of what is done to a picture and to a prompt


def cached(key: dict, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` returns for `key`, on the CPU; from the cache when they were made before.

    Large ones are mapped from the file, not read: they take memory that the system can take back. After MOST files
    they are read as well.
    """
    file, told = place(key)
    found = read(file, told)
    if found is None:
        found = {name: t.detach().cpu().contiguous() for name, t in make().items()}
        with atomic(file) as temporary:
            save_file(found, temporary, metadata={"key": told})
        found = read(file, told) or found
    return found


def place(key: dict) -> tuple[Path, str]:
    """(the file of a key, the key as it is told inside)."""
    told = json.dumps(key | {"version": VERSION}, sort_keys=True)
    return cache_dir("prepared", hashlib.sha256(told.encode()).hexdigest() + ".safetensors"), told


def read(file: Path, told: str) -> dict[str, Tensor] | None:
    """The tensors of a cache file, or None when it is absent, damaged, or of another key."""
    try:
        with safe_open(file, "pt") as tensors:
            if (tensors.metadata() or {}).get("key") != told:
                return None
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            large = {name for name, t in found.items() if t.nbytes >= MAPPED}
            mapped = large if large and next(COUNT) < MOST else set()
            return {name: t if name in mapped else t.clone() for name, t in found.items()}
    except (FileNotFoundError, SafetensorError):
        return None
