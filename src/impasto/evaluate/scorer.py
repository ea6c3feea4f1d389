"""One ruler for all pictures: generated ones, those of the base without adapter and the true ones get the same rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impasto.evaluate import clip, paired
from impasto.evaluate.encoders import BATCH, Encoder
from impasto.evaluate.judged import Row, concept_rows, style_rows
from impasto.evaluate.leakage import leaks
from impasto.evaluate.samples import to_tensor


@dataclass(frozen=True)
class Ruler:
    """The instruments and what they measure against. None (or an empty dict) is "unknown"; its scores are None.

    judges: `artworld.judges.Judges`; encoder: small CLIP or another; style: id of the asked style; reference: the
    picture that was trained on, and its concept; truths: concept -> true picture in the asked style.
    """

    judges: Any
    encoder: Encoder | None = None
    style: int | None = None
    reference: Image.Image | None = None
    reference_concept: int | None = None
    truths: dict[int, Image.Image] = field(default_factory=dict)

    def rows(
        self,
        images: Iterable[Image.Image],
        concepts: Sequence[int | None],
        prompts: Sequence[str | None],
        true: bool = False,
    ) -> list[Row]:
        """One row of scores per image. `true`: these are the true pictures themselves, paired with nothing.

        images: taken BATCH at a time, each once, and not kept.
        """
        rows, embedded, left = [], [], iter(images)
        for start in range(0, len(concepts), BATCH):
            part, vectors = self._seen(list(islice(left, BATCH)), concepts[start : start + BATCH], true)
            rows += part
            embedded += vectors
        if self.encoder is not None and rows:
            self._clip(rows, self.encoder, torch.cat(embedded), concepts, prompts, true)
        return rows

    def _seen(
        self, images: list[Image.Image], concepts: Sequence[int | None], true: bool
    ) -> tuple[list[Row], list[Tensor]]:
        """What the judges and the true pictures say of some images, and what the encoder makes of them, if there is
        one."""
        pixels = to_tensor(images)
        seen = self.judges.concept(pixels)
        style = style_rows(self.judges.style(pixels), self.judges.style_names, self.judges.kinds, self.style)
        concept = concept_rows(seen, self.judges.labels, concepts)
        leak = leaks(seen, concepts, self.reference_concept, self.judges.concept_threshold)
        rows = [a | b | {"leakage": c} for a, b, c in zip(style, concept, leak, strict=True)]
        self._add(rows, "style_cosine", self._style_cosine(pixels))
        if not true:
            self._pairs(rows, pixels, concepts)
        return rows, [] if self.encoder is None else [self.encoder.images(images)]

    def _add(self, rows: list[Row], name: str, values: Tensor | None, index: Sequence[int] | None = None) -> None:
        """Put values [n] into rows `index` (default: all); nan and None leave the score unknown."""
        for row in rows:
            row.setdefault(name, None)
        if values is not None:
            for i, value in zip(index if index is not None else range(len(rows)), values.tolist(), strict=True):
                rows[i][name] = value if value == value else None

    def _style_cosine(self, pixels: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        features = self.judges.style_features(pixels)
        return clip.clip_i_reference(features, self.judges.style_features(to_tensor([self.reference])))

    def _pairs(self, rows: list[Row], pixels: Tensor, concepts: Sequence[int | None]) -> None:
        index, truths = self._paired(concepts)
        if index:
            true_pixels = to_tensor(truths)
            self._add(rows, "ssim", paired.ssim(pixels[index], true_pixels), index)
            self._add(rows, "mse", paired.mse(pixels[index], true_pixels), index)

    def _paired(self, concepts: Sequence[int | None]) -> tuple[list[int], list[Image.Image]]:
        """Positions of the images whose true picture is known, and these pictures."""
        known = [(i, self.truths[c]) for i, c in enumerate(concepts) if c is not None and c in self.truths]
        return [i for i, _ in known], [picture for _, picture in known]

    def _clip(
        self,
        rows: list[Row],
        encoder: Encoder,
        embedded: Tensor,
        concepts: Sequence[int | None],
        prompts: Sequence[str | None],
        true: bool,
    ) -> None:
        if self.reference is not None:
            self._add(rows, "clip_i_reference", clip.clip_i_reference(embedded, encoder.images([self.reference])))
        index, pictures = self._paired(concepts)
        if index:
            asked = [c for c in concepts if c is not None and c in self.truths]
            truths = encoder.images(pictures)
            self._add(rows, "clip_i_style", clip.clip_i_style(embedded[index], truths, asked, asked), index)
            if not true:
                self._add(rows, "clip_i_paired", clip.clip_i_paired(embedded[index], truths), index)
        told = [i for i, prompt in enumerate(prompts) if prompt]
        texts = encoder.texts([prompts[i] or "" for i in told]) if told else None
        if texts is not None:
            self._add(rows, "clip_t", clip.clip_t(embedded[told], texts), told)
