"""Preparing: pictures to latents and captions to embeddings, once, kept in the cache under the hash of what they show.

A cache file is named by all that it depends on (file bytes, crop, mask, size, or prompt, length and the precision of
the text encoders, where the autoencoder always has float32; base weights), and a pair is made from what the two were
asked for, never from their places in two lists. Latents are made one by one, so that they do not depend on what they
would share a batch with; memory holds one decoded picture at a time. Sets above ON_DEVICE stay in their cache files, of
which a batch reads its own rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from impasto.data import masks as loss_masks
from impasto.data.buckets import View
from impasto.data.cache import DiskRows, Stored, stored
from impasto.data.cache import cached as cached
from impasto.data.items import Item
from impasto.data.references import Reference, to_tensor
from impasto.families.base import Condition, Family
from impasto.progress import Progress, ignore

ON_DEVICE = 2**28  # bytes: what is smaller lies on the device as a whole, of larger sets only the batch is read

Rows = Any
"""One tensor, or a list or `DiskRows` of tensors that may differ in shape: what is indexed by a row."""


@dataclass(frozen=True)
class Pair:
    """One picture with its caption. views: rows of x, one is drawn each time; caption: row of the conditions;
    teacher_caption: row of the teacher's."""

    views: tuple[int, ...]
    caption: int
    repeats: int = 1
    teacher_caption: int = 0


@dataclass(frozen=True)
class Prepared:
    """Latents x, and per text length the conditions of the captions and its share of the batches.

    x: rows (C, h, w), in several shapes maybe. conds: rows of each condition. pairs: which belong together; row i with
    row i where none are given. masks: per row of x None or weights (1, h, w) with mean 1. sizes: per row of x SDXL's
    (original h, w, crop top, left, target h, w). empty: the row of the empty caption. captions: the rows' words.
    teacher_conds, teacher_empty: the same of a distillation's teacher, at its first text length; None without one.
    """

    x: Rows
    conds: dict[int, dict[str, Rows]]
    shares: dict[int, float]
    pairs: tuple[Pair, ...] = ()
    masks: Sequence[Tensor | None] = ()
    sizes: Tensor | None = None
    empty: int | None = None
    captions: tuple[str, ...] = ()
    teacher_conds: dict[str, Rows] | None = None
    teacher_empty: int | None = None

    @cached_property
    def all_pairs(self) -> tuple[Pair, ...]:
        return self.pairs or tuple(Pair((i,), i) for i in range(len(self.x)))

    def to(self, device: torch.device | str) -> "Prepared":
        """All of it on `device` when it is small; else as it is, for the batches to follow one by one."""
        teacher = self.teacher_conds or {}
        rows = [self.x, *(rows for cond in (*self.conds.values(), teacher) for rows in cond.values())]
        if any(isinstance(some, DiskRows) for some in rows) or sum(t.nbytes for some in rows for t in some) > ON_DEVICE:
            return self
        conds = {n: {name: moved(some, device) for name, some in cond.items()} for n, cond in self.conds.items()}
        masks = tuple(mask if mask is None else mask.to(device) for mask in self.masks)
        sizes = None if self.sizes is None else self.sizes.to(device)
        own = {"x": moved(self.x, device), "conds": conds, "masks": masks, "sizes": sizes}
        if self.teacher_conds is not None:
            own["teacher_conds"] = {name: moved(some, device) for name, some in teacher.items()}
        return replace(self, **own)


def row_shape(rows: Rows, i: int) -> torch.Size:
    """The shape of a row, also where it is not read yet."""
    return rows.shape(i) if isinstance(rows, DiskRows) else rows[i].shape


def moved(rows: Rows, device: torch.device | str) -> Rows:
    return rows.to(device) if isinstance(rows, Tensor) else [row.to(device) for row in rows]


def prepare_items(
    family: Family,
    items: Sequence[Item],
    dropout: bool = False,
    progress: Progress = ignore,
    teacher: Family | None = None,
    spell: Callable[[str], str] = str,
) -> Prepared:
    """Latents and text embeddings of all items; what is in the cache needs neither VAE nor text encoders.

    spell: a caption as the text encoders read it, see `adapters.text_encoder.TextConditioning.spell`.
    dropout: the empty caption as well. progress: called after each image and caption.
    teacher: encodes `teacher_caption`, or the caption of items without one; its encoders are freed afterwards.
    """
    captions = numbered([one.caption for one in items], dropout)
    teacher_captions = numbered([one.teacher_caption or one.caption for one in items], dropout) if teacher else {}
    x: list[Stored] = []
    masks: list[Stored | None] = []
    sizes, pairs = [], []
    for one in items:
        kept = stored_views(family, one)
        of_teacher = teacher_captions.get(one.teacher_caption or one.caption, 0)
        pairs.append(Pair(tuple(range(len(x), len(x) + len(kept))), captions[one.caption], one.repeats, of_teacher))
        for view, tensors in kept:
            x.append(tensors["x"])
            masks.append(tensors.get("mask"))
            sizes.append(view.record(one.picture.width, one.picture.height))
        progress("encoding images", len(sizes), len(items))
    family.free("vae")  # makes room for the text encoders
    texts: dict[int, dict[str, list[Stored]]] = {length: {} for length in family.text_lengths}
    for done, caption in enumerate(captions, 1):
        for length, cond in texts.items():
            add_text(cond, family, spell(caption), length)
        progress("encoding captions", done, len(captions))
    teacher_texts: dict[str, list[Stored]] = {}
    for done, caption in enumerate(teacher_captions, 1):
        assert teacher is not None
        add_text(teacher_texts, teacher, caption, next(iter(teacher.text_lengths)))
        progress("encoding the teacher's captions", done, len(teacher_captions))
    if teacher:
        teacher.free("encoders")
    wanted = getattr(family, "wants_size_ids", False)
    found = [*x, *masks, *(row for cond in (*texts.values(), teacher_texts) for rows in cond.values() for row in rows)]
    load = list if sum(row.nbytes for row in found if row is not None) <= ON_DEVICE else lambda rows: rows
    return Prepared(
        load(DiskRows(x)),
        {length: {name: load(DiskRows(rows, first)) for name, rows in cond.items()} for length, cond in texts.items()},
        dict(family.text_lengths),
        tuple(pairs),
        load(DiskRows(masks, weighted)) if any(mask is not None for mask in masks) else (),
        torch.tensor(sizes, dtype=torch.float32) if wanted else None,
        captions[""] if dropout else None,
        tuple(captions),
        {name: load(DiskRows(rows, first)) for name, rows in teacher_texts.items()} if teacher else None,
        teacher_captions[""] if teacher and dropout else None,
    )


def numbered(captions: Sequence[str], dropout: bool) -> dict[str, int]:
    """Each different caption with its row; the empty one as well with `dropout`."""
    return {caption: i for i, caption in enumerate(dict.fromkeys([*captions, *([""] * dropout)]))}


def add_text(cond: dict[str, list[Stored]], family: Family, caption: str, length: int) -> None:
    """Append the rows of a caption to those of a condition."""
    for name, row in stored(*text_entry(family, caption, length)).items():
        cond.setdefault(name, []).append(row)


def first(rows: Tensor) -> Tensor:
    return rows[0]


def stored_views(family: Family, item: Item) -> list[tuple[View, dict[str, Stored]]]:
    """{"x": (C, h, w), "mask": (1, h, w) where there is one} of each view whose mask leaves something."""
    decoded: list[Reference] = []

    def reference() -> Reference:
        if not decoded:
            decoded.append(item.picture.load())
        return decoded[0]

    kept = []
    for view in item.views:
        tensors = stored(view_key(family, item, view), lambda view=view: encode(family, reference(), item, view))
        if "mask" not in tensors or tensors["mask"].read().mean() >= loss_masks.LEAST:
            kept.append((view, tensors))
    if not kept:
        raise loss_masks.nothing(item.picture)
    return kept


def view_key(family: Family, item: Item, view: View) -> dict[str, Any]:
    """The key of a view's latents in the cache."""
    key = {"image": item.picture.sha256, "box": view.box, "shape": view.shape, "mirrored": view.mirrored}
    return key | {"mask": item.mask_sha256 or item.mask, "base": family.hash}


def encode(family: Family, reference: Reference, item: Item, view: View) -> dict[str, Tensor]:
    """The latents of one view, as the family has them, and its mask: the share of what counts in the area of each
    latent position."""
    x = family.encode_image(to_tensor(cut(reference.image, view, view.shape)))[0]
    if item.mask is None:
        return {"x": x}
    mask = loss_masks.of(lambda: reference, item.mask, item.mask_sha256)
    share = cut(mask.convert("F"), view, (x.shape[2], x.shape[1]), Image.Resampling.BOX)
    return {"x": x, "mask": torch.from_numpy(np.asarray(share) / 255)[None]}


def weighted(mask: Tensor) -> Tensor:
    """The mask divided by its mean: what it leaves weighs as much as a whole picture."""
    return mask / mask.mean()


def cut(
    image: Image.Image, view: View, shape: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The part of an image that a view shows, at `shape`."""
    part = image.resize(shape, resampling, box=view.box)
    return ImageOps.mirror(part) if view.mirrored else part


def text(family: Family, prompt: str, length: int) -> Condition:
    """The condition of one prompt, one row."""
    return cached(*text_entry(family, prompt, length))


def text_entry(family: Family, prompt: str, length: int) -> tuple[dict[str, Any], Callable[[], Condition]]:
    """The key of a prompt's condition in the cache, and what makes it."""
    key = {"prompt": prompt, "length": length, "base": family.hash, "precision": family.precision}
    return key, lambda: {name: t.float() for name, t in family.encode_prompt([prompt], length).items()}


def stack(conds: Sequence[Condition]) -> Condition:
    """Rows of several prompts as one condition."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
