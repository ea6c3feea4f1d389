"""The scorer: the same rows of scores for generated images, images of the base without adapter, and true images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from impasto.evaluation import clip, paired
from impasto.evaluation.encoders import BATCH, Encoder
from impasto.evaluation.judged import Row, concept_rows, style_rows
from impasto.evaluation.leakage import leaks
from impasto.evaluation.near_copy import near_copies
from impasto.evaluation.samples import to_tensor
from impasto.evaluation.scores import SCORES
from impasto.registry import load

OF_CONCEPTS = ("concept_judged", "concept_rank", "concept_top1", "concept_top5", "leakage")
OF_STYLE = ("style_judged", "style_accuracy", "kind_accuracy", "style_probability", "style_cosine")
"""Scores by the judges."""


@dataclass(frozen=True)
class Scorer:
    """Judges, encoder and targets. None (or an empty dict) is unknown; the scores that need it are None.

    judges: `judges.model.Judges`; encoder: small CLIP or another; style: id of the expected style; reference,
    reference_concept: the training image and its concept; truths: concept -> true image in the style; dino: an encoder
    of images alone; judged: which of the judges' scores are valid here: all, those of style, or none ("").
    """

    judges: Any
    encoder: Encoder | None = None
    style: int | None = None
    reference: Image.Image | None = None
    reference_concept: int | None = None
    truths: dict[int, Image.Image] = field(default_factory=dict)
    dino: Encoder | None = None
    judged: Literal["all", "style", ""] = "all"

    def rows(
        self,
        images: Iterable[Image.Image],
        concepts: Sequence[int | None],
        prompts: Sequence[str | None],
        true: bool = False,
    ) -> list[Row]:
        """One row of scores per image. true: the images are the true images, which are not paired.

        images: consumed BATCH at a time, not kept.
        """
        rows, embedded, dino, remaining = [], [], [], iter(images)
        for start in range(0, len(concepts), BATCH):
            batch = list(islice(remaining, BATCH))
            rows += self._score_batch(batch, concepts[start : start + BATCH], true)
            embedded += [] if self.encoder is None else [self.encoder.images(batch)]
            dino += [] if self.dino is None else [self.dino.images(batch)]
            batch.clear()  # before the next one is read
        if self.encoder is not None and rows:
            self._clip(rows, self.encoder, torch.cat(embedded), concepts, prompts, true)
        if self.dino is not None and rows and self.reference is not None:
            cosines = clip.clip_i_reference(torch.cat(dino), self.dino.images([self.reference]))
            self._add(rows, "dino_i_reference", cosines)
        return rows

    def _score_batch(self, images: list[Image.Image], concepts: Sequence[int | None], true: bool) -> list[Row]:
        """Rows with the judges' and paired scores."""
        pixels = to_tensor(images)
        probabilities = self.judges.concept(pixels)
        style = style_rows(self.judges.style(pixels), self.judges.style_names, self.judges.kinds, self.style)
        concept = concept_rows(probabilities, self.judges.labels, concepts)
        leak = leaks(probabilities, concepts, self.reference_concept, self.judges.concept_threshold)
        rows = [a | b | {"leakage": c} for a, b, c in zip(style, concept, leak, strict=True)]
        self._add(rows, "style_cosine", self._style_cosine(pixels))
        copies = [None] * len(rows) if self.reference is None else near_copies(images, [self.reference])
        for row, copy in zip(rows, copies, strict=True):
            row["near_copy"] = copy
        if self.judged != "all":
            for row in rows:
                row |= dict.fromkeys(OF_CONCEPTS if self.judged else OF_CONCEPTS + OF_STYLE)
        for name, score in SCORES.items():
            if score.measure:
                self._add(rows, name, load(score.measure)(pixels))
        if not true:
            self._pairs(rows, pixels, concepts)
        return rows

    def _add(self, rows: list[Row], name: str, values: Tensor | None, index: Sequence[int] | None = None) -> None:
        """Put values [n] into rows `index` (default: all); NaN and None leave the score None."""
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
            self._add(rows, "palette", paired.palette(pixels[index], true_pixels), index)
            self._add(rows, "ground", paired.ground(pixels[index], true_pixels), index)

    def _paired(self, concepts: Sequence[int | None]) -> tuple[list[int], list[Image.Image]]:
        """(positions of the images with a known true image, these true images)."""
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
            cells = [c for c in concepts if c is not None and c in self.truths]
            truths = encoder.images(pictures)
            self._add(rows, "clip_i_style", clip.clip_i_style(embedded[index], truths, cells, cells), index)
            if not true:
                self._add(rows, "clip_i_paired", clip.clip_i_paired(embedded[index], truths), index)
        known = [i for i, prompt in enumerate(prompts) if prompt]
        texts = encoder.texts([prompts[i] or "" for i in known]) if known else None
        if texts is not None:
            self._add(rows, "clip_t", clip.clip_t(embedded[known], texts), known)
