"""What the worlds of the papers' protocols share: images and prompts are scored by a CLIP that the user names."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from impasto.errors import UserError
from impasto.evaluation.encoders import Encoder, load_encoder

CLIP = "openai/clip-vit-base-patch32"


class ClipWorld:
    """See `runner.World`. clip: a folder, a hub id, or an `Encoder`. loaded: properties that hold loaded encoders."""

    clip: Encoder | Path | str
    loaded: ClassVar[tuple[str, ...]] = ("_clip",)

    def instruments(self) -> dict[str, Any]:
        """Hash of the encoder. Raises UserError when it has no text tower."""
        if self._clip.texts(["a picture"]) is None:
            raise UserError(f"{self._clip.name} has no text tower: give --clip a CLIP, such as {CLIP}")
        return {"clip": self._clip.hash}

    @cached_property
    def _clip(self) -> Encoder:
        return load(self.clip)

    def __getstate__(self) -> Mapping[str, Any]:
        """Without the loaded encoders: each worker loads its own."""
        return {key: value for key, value in self.__dict__.items() if key not in self.loaded}


def load(encoder: Encoder | Path | str) -> Encoder:
    """The encoder, loaded unless it is."""
    return encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
