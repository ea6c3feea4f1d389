"""Randomness as a function of (seed, step, item): nothing to save, nothing that a batch size or a resume can change."""

import hashlib
from collections.abc import Iterable

import torch


def generator(seed: int, step: int, item: int | str) -> torch.Generator:
    """A CPU generator of its own for one item of one step; a string names a draw that the whole step shares.

    torch's CPU generator keeps the lower 32 bits of its seed, so these are taken from a hash, where any two
    of (seed, step, item) are independent: neighbouring seeds of a plain sum would repeat each other's items.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{item}".encode(), digest_size=4).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))


def generators(seed: int, step: int, items: Iterable[int]) -> list[torch.Generator]:
    """One generator per item."""
    return [generator(seed, step, item) for item in items]
