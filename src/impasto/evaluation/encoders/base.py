"""What every encoder offers, and the encoder of a transformers folder or hub id (CLIP, DINO, DINOv2, ...).

Three kinds: an `Encoder` embeds images (and texts, with a text tower), a `Reward` scores an image for its prompt, a
`Distance` compares two images. All take PIL images of any size, work in batches, in float32, and return float32 tensors
on the CPU.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
class Instrument:
    """name: of the row of `ENCODERS`, or the source. model: the network, None in tests."""

    name: str
    model: Any

    @cached_property
    def hash(self) -> str:
        """sha256 of its weights; its name without a model (in tests)."""
        if self.model is None:
            return self.name
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def version(self) -> str:
        """The first 12 digits of `hash`: the same for a hub id and for a local copy of it."""
        return self.hash[:12]

    @property
    def source(self) -> str:
        """The folder, file or hub id that it was loaded from."""
        return getattr(self.model, "impasto_source", self.name)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class Encoder(Instrument):
    """`images(list of PIL)` -> unit vectors [n, d]; `texts(list of str)` -> unit vectors [n, d], or None."""

    processor: Any
    tokenizer: Any | None

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Image embeddings float32 [n, d] of length 1: CLIP's projected embedding, otherwise the CLS token."""
        return torch.cat([normalize(self._features(batch).float().cpu(), dim=-1) for batch in batches(images)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Text embeddings float32 [n, d] of length 1, in the images' space; texts are truncated at the tower's
        length. None without a text tower."""
        if self.tokenizer is None:
            return None
        length = self.model.config.text_config.max_position_embeddings
        kinds = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **kinds).to(self.device)
        features = self.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return normalize(pooled(features).float().cpu(), dim=-1)

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings [n, d] of a batch, of any length."""
        pixels = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device)
        if hasattr(self.model, "get_image_features"):
            return pooled(self.model.get_image_features(pixel_values=pixels))
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


@dataclass(frozen=True)
class Reward(Instrument):
    """`rewards(images, prompts)` -> [n], how good each image is for its prompt; NaN where it cannot say."""

    def rewards(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Distance(Instrument):
    """`distances(images, others)` -> [n] of pairs, 0 for equal images."""

    def distances(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> Tensor:
        raise NotImplementedError


def batches(images: Sequence[Any], size: int | None = None) -> Iterator[Sequence[Any]]:
    """Slices of `size`, by default BATCH, items; they are read when they are taken."""
    size = size or BATCH
    for start in range(0, len(images), size):
        yield images[start : start + size]


def pooled(output: Any) -> Tensor:
    """The embedding of a `get_*_features` call: transformers 5 wraps it, earlier releases returned a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def load_encoder(name: Path | str = MODELS / "clip", device: str = "cpu", row: str | None = None) -> Encoder:
    """Load a transformers folder or hub id in float32, for inference. row: its name in `ENCODERS`, default the source.
    Raises UserError."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    source = str(name)
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise UserError(f"no encoder at {source}: give a transformers folder or a hub id such as facebook/dino-vits16")
    with loading(source, row):
        model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32).eval()
        processor = AutoImageProcessor.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source) if hasattr(model, "get_text_features") else None
    return Encoder(row or source, placed(model, device, source), processor, tokenizer)


@contextmanager
def loading(source: str, row: str | None = None) -> Iterator[None]:
    """Turn the errors of `from_pretrained` into one line that says what to pass. row: the encoder's name in
    `ENCODERS`."""
    try:
        with quiet():
            yield
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if row is None:
            raise UserError(f"encoder {source} cannot be loaded: {first}") from None
        raise UserError(f"encoder {row} ({source}) cannot be loaded: {first}; give a copy: {row}=FOLDER") from None


def placed(model: Any, device: str, source: Path | str) -> Any:
    """The model on the device, for inference, marked with its source."""
    model = model.eval().requires_grad_(False).to(device)
    model.impasto_source = str(source)
    return model
