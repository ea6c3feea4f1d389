"""Random generators as a function of (seed, step, item): no state to save, independent of batch size and resumption."""

import hashlib
from collections.abc import Iterable

import torch


def generator(seed: int, step: int, item: int | str) -> torch.Generator:
    """A CPU generator for one item of one step; a string names a draw shared by the whole step.

    Seeded by a 32-bit hash (torch's CPU generator keeps the lower 32 bits of its seed), so that neighbouring seeds,
    steps and items do not repeat each other's draws, as a sum of the three would.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{item}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))


def generators(seed: int, step: int, items: Iterable[int]) -> list[torch.Generator]:
    """`generator(seed, step, item)` of each item."""
    return [generator(seed, step, item) for item in items]
