"""PickScore (Kirstain et al. 2023): a CLIP ViT-H/14 tuned on people's choices; logit scale times the cosine.

Published values are the raw score (about 18 to 24) or that less 21 (`OFFSET`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from impasto.evaluation.encoders.base import Encoder, Reward, load_encoder

OFFSET = 21.0


@dataclass(frozen=True)
class PickScore(Reward):
    """encoder: the CLIP."""

    encoder: Encoder

    @torch.no_grad()
    def rewards(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """exp(logit scale) cos(image, prompt), [n]; "raw" in the literature."""
        texts = self.encoder.texts(prompts)
        assert texts is not None  # checked by `load`
        return self.model.logit_scale.exp().cpu() * (self.encoder.images(images) * texts).sum(-1)


def load(source: Path | str, device: str = "cpu", row: str = "pickscore") -> PickScore:
    """From a transformers folder or hub id. Raises UserError."""
    from impasto.errors import UserError

    encoder = load_encoder(source, device, row)
    if encoder.tokenizer is None:
        raise UserError(f"encoder {row}: {source} has no text tower: give a copy of yuvalkirstain/PickScore_v1")
    return PickScore(row, encoder.model, encoder)
