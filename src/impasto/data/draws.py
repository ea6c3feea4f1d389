"""Draws: what a step trains on. Every one of them is a function of (seed, step, item).

    bucket     by the step                   P(bucket) = its repeats / all repeats
    item       picture, lam, eps, offset     from the item's own generator, in this order
               crop, empty caption           from generators of their own, so that they change no other draw

All items of a step have one latent shape, whatever the batch and the accumulation are, so that a split of the batch or
over several devices changes no draw.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from impasto.data.batch import Batch
from impasto.data.config import DataConfig
from impasto.data.prepare import Prepared, Rows, row_shape
from impasto.families.base import Condition
from impasto.noise.config import NoiseSettings
from impasto.noise.laws import Law
from impasto.noise.offset import add_offset
from impasto.noise.random import generator, generators
from impasto.optim.config import OptimConfig


class DrawSettings(Protocol):
    """The part of a TrainConfig that draws depend on."""

    @property
    def seed(self) -> int: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def noise(self) -> NoiseSettings: ...


@dataclass(frozen=True)
class Draws:
    """What step and micro-batch train on: n draws of (picture, noise level, noise), and one text length for all.

    device: where the batch goes; where the latents are when not given.
    """

    config: DrawSettings
    law: Law
    prepared: Prepared
    device: str | torch.device | None = None

    def __call__(self, step: int, micro: int) -> tuple[Batch, Tensor, list[Generator]]:
        """(batch, lam_B, the generators of its items, which an objective may draw from further)."""
        data, n = self.prepared, self.config.optim.batch
        items = range(micro * n, micro * n + n)
        own = generators(self.config.seed, step, items)
        bucket = self.bucket(step)
        pairs = [data.all_pairs[bucket[self.below(len(bucket), g)]] for g in own]
        views = [
            pair.views[self.shared(step, f"crop {i}", len(pair.views))] for i, pair in zip(items, pairs, strict=True)
        ]
        kept = [self.keeps(step, i) for i in items]
        captions: list[Any] = [pair.caption if keep else data.empty for pair, keep in zip(pairs, kept, strict=True)]
        device = self.device or data.x[0].device
        lam_B = self.law(own).to(device)
        x = torch.stack([data.x[view] for view in views]).to(device)
        eps = torch.stack([torch.randn(x.shape[1:], generator=g) for g in own])
        eps = add_offset(eps, own, self.config.noise.offset).to(device)
        sizes = {} if data.sizes is None else {"size_ids": data.sizes[views].to(device)}
        cond = gather(data.conds[self.length(step)], captions, device) | sizes
        prompts = tuple(data.captions[i] for i in captions) if data.captions else ()
        teacher_cond = None
        if data.teacher_conds is not None:
            rows = [
                pair.teacher_caption if keep else data.teacher_empty for pair, keep in zip(pairs, kept, strict=True)
            ]
            teacher_cond = gather(data.teacher_conds, rows, device) | sizes
        return Batch(x, eps, cond, self.mask(views, x), prompts, teacher_cond=teacher_cond), lam_B, own

    def mask(self, views: Sequence[int], x: Tensor) -> Tensor | None:
        """Weights (B, 1, h, w), ones where a picture has no mask; None when none has."""
        masks = [self.prepared.masks[view] for view in views] if self.prepared.masks else []
        if all(mask is None for mask in masks):
            return None
        whole = torch.ones(1, *x.shape[2:])
        return torch.stack([(whole if mask is None else mask).to(x.device) for mask in masks])

    def length(self, step: int) -> int:
        """The text length of a step: each as often as the base's card says."""
        u = torch.rand((), generator=generator(self.config.seed, step, "text length")).item()
        lengths, shares = list(self.prepared.shares), torch.tensor(list(self.prepared.shares.values()))
        return lengths[int((u >= shares.cumsum(0)[:-1]).sum())]

    def at_once(self, step: int, patch: int) -> int:
        """How many items of a step go through the denoiser together: a batch with a long text goes in parts that have
        about as many tokens as one with the usual text, so that it takes no more memory.

        patch: latents per token and side.
        """
        shares, pair = self.prepared.shares, self.prepared.all_pairs[self.bucket(step)[0]]
        height, width = row_shape(self.prepared.x, pair.views[0])[-2:]
        usual, own = (
            height * width // patch**2 + row_shape(self.prepared.conds[length]["text"], 0)[0]
            for length in (max(shares, key=lambda length: shares[length]), self.length(step))
        )
        return min(self.config.optim.batch, max(1, round(self.config.optim.batch * usual / own)))

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Pairs of each latent shape, each as often as it counts."""
        pairs = self.prepared.all_pairs
        unit = math.gcd(*(pair.repeats for pair in pairs))
        found: dict[torch.Size, list[int]] = {}
        for i, pair in enumerate(pairs):
            found.setdefault(row_shape(self.prepared.x, pair.views[0]), []).extend([i] * (pair.repeats // unit))
        return list(found.values())

    def bucket(self, step: int) -> list[int]:
        """The bucket of a step."""
        place = self.shared(step, "bucket", sum(map(len, self.buckets)))
        for bucket in self.buckets:
            if place < len(bucket):
                return bucket
            place -= len(bucket)
        raise AssertionError("a place beyond the last bucket")

    def keeps(self, step: int, item: int) -> bool:
        """Whether an item keeps its caption; else it has the empty one."""
        if not self.config.data.caption_dropout or self.prepared.empty is None:
            return True
        u = torch.rand((), generator=generator(self.config.seed, step, f"dropout {item}")).item()
        return u >= self.config.data.caption_dropout

    def shared(self, step: int, name: str, count: int) -> int:
        """A number below `count`, from a generator of its own."""
        return self.below(count, generator(self.config.seed, step, name)) if count > 1 else 0

    @staticmethod
    def below(count: int, own: Generator) -> int:
        return int(torch.randint(count, (1,), generator=own))


def gather(cond: Mapping[str, Rows], rows: Sequence[Any], device: torch.device | str) -> Condition:
    """These rows of a condition."""
    return {name: torch.stack([some[i] for i in rows]).to(device) for name, some in cond.items()}


Drawn = tuple[Batch, Tensor, list[Generator]]


def split_batch(drawn: Drawn, most: int) -> Iterator[tuple[float, Drawn]]:
    """The same draws, at most `most` at a time, each with its share: a mean over items is the mean by these shares."""
    batch, lam_B, own = drawn
    n = len(own)
    if n <= most:
        yield 1.0, drawn
        return
    for first in range(0, n, most):
        at = slice(first, first + most)
        cond, teacher_cond = (
            some and {name: rows[at] for name, rows in some.items()} for some in (batch.cond, batch.teacher_cond)
        )
        mask = None if batch.mask is None else batch.mask[at]
        rows = {"x": batch.x[at], "eps": batch.eps[at], "cond": cond, "mask": mask, "prompts": batch.prompts[at]}
        rows["teacher_cond"] = teacher_cond
        part = replace(batch, **rows, part=(first, n))
        yield len(own[at]) / n, (part, lam_B[at], own[at])
