"""One interface to image and text encoders: the small CLIP, openai/clip-vit-base-patch32, facebook/dino-vits16.

Any transformers folder or hub id supported by `AutoModel`, with safetensors weights. Without a text tower (DINO)
`texts` returns None, and the scores that need it are null.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from impasto.errors import UserError
from impasto.families.base import quiet
from impasto.files import MODELS

BATCH = 64


@dataclass(frozen=True)
class Encoder:
    """`images(list of PIL)` -> unit vectors [n, d]; `texts(list of str)` -> unit vectors [n, d], or None."""

    name: str
    model: Any
    processor: Any
    tokenizer: Any | None

    @cached_property
    def hash(self) -> str:
        """sha256 of its weights; its name without a model (in tests)."""
        if self.model is None:
            return self.name
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Image embeddings float32 [n, d] of length 1: CLIP's projected embedding, otherwise the CLS token."""
        return torch.cat([self._images(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Text embeddings float32 [n, d] of length 1, in the images' space; texts are truncated at the tower's
        length."""
        if self.tokenizer is None:
            return None
        length = self.model.config.text_config.max_position_embeddings
        kinds = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **kinds)
        features = self.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return normalize(pooled(features).float(), dim=-1)

    def _images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        if hasattr(self.model, "get_image_features"):
            features = pooled(self.model.get_image_features(pixel_values=pixels))
        else:
            features = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return normalize(features.float(), dim=-1)


def pooled(output: Any) -> Tensor:
    """The embedding of a `get_*_features` call: transformers 5 wraps it, earlier releases returned a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_encoder(name: Path | str = MODELS / "clip") -> Encoder:
    """Load a transformers folder or hub id on the CPU, in float32, for inference. Raises UserError."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    source = str(name)
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise UserError(f"no encoder at {source}: give a transformers folder or a hub id such as facebook/dino-vits16")
    try:
        with quiet():
            model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32).eval()
            processor = AutoImageProcessor.from_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source) if hasattr(model, "get_text_features") else None
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"encoder {source} cannot be loaded: {first}") from None
    return Encoder(source, model, processor, tokenizer)
