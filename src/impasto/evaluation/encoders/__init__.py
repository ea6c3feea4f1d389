"""Encoders that score images, one row each: the field's own, and those that come with impasto.

A row states what loads it and where from by default. `load("dinov2")`, `load("csd=weights/csd.safetensors")`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest
from impasto.evaluation.encoders.base import BATCH, Distance, Encoder, Instrument, Reward, load_encoder, pooled
from impasto.files import MODELS
from impasto.registry import load as load_object

__all__ = [
    "BATCH",
    "ENCODERS",
    "Distance",
    "Encoder",
    "EncoderRow",
    "Instrument",
    "Reward",
    "load",
    "load_all",
    "load_encoder",
    "pooled",
    "split_name",
]


@dataclass(frozen=True)
class EncoderRow:
    """build: "module:function" of (source, device, row) -> `Instrument`. source: default folder or hub id; None: the
    user gives one, see `needs`. scores: what `encoder_scores.score` computes with it. about: one line."""

    build: str
    source: str | None
    scores: tuple[str, ...]
    about: str
    needs: str = ""
    packaged: bool = False


HERE = "impasto.evaluation.encoders"
TRANSFORMERS = f"{HERE}:load_transformers"
IMAGE = ("reference", "diversity")
TEXT = (*IMAGE, "text", "clip_s")
CONVERTED = "it reads converted weights: impasto weights convert FILE, then"
ENCODERS: Mapping[str, EncoderRow] = {
    "small-clip": EncoderRow(
        TRANSFORMERS, str(MODELS / "clip"), TEXT, "the small CLIP of the embedded bases", packaged=True
    ),
    "style-judge": EncoderRow(
        f"{HERE}.judges:load_style", "", IMAGE, "features of the embedded style judge", packaged=True
    ),
    "concept-judge": EncoderRow(
        f"{HERE}.judges:load_concept", "", ("reward",), "log-odds of the prompt's concept, embedded", packaged=True
    ),
    "dino": EncoderRow(TRANSFORMERS, "facebook/dino-vits16", IMAGE, "DINO ViT-S/16, class token"),
    "dinov2": EncoderRow(TRANSFORMERS, "facebook/dinov2-base", IMAGE, "DINOv2 ViT-B/14, class token"),
    "clip-b32": EncoderRow(TRANSFORMERS, "openai/clip-vit-base-patch32", TEXT, "CLIP ViT-B/32: CLIP-I, CLIP-T, CLIP-S"),
    "clip-l14": EncoderRow(
        TRANSFORMERS, "openai/clip-vit-large-patch14", TEXT, "CLIP ViT-L/14: CLIP-I, CLIP-T, CLIP-S"
    ),
    "csd": EncoderRow(
        f"{HERE}.csd:load",
        None,
        IMAGE,
        "CSD, style head",
        f"{CONVERTED} csd=FILE.safetensors (tomg-group-umd/CSD-ViT-L)",
    ),
    "image-reward": EncoderRow(
        f"{HERE}.image_reward:load",
        None,
        ("reward",),
        "ImageReward v1.0",
        f"{CONVERTED} image-reward=FILE.safetensors (ImageReward.pt of THUDM/ImageReward)",
    ),
    "pickscore": EncoderRow(
        f"{HERE}.pickscore:load", "yuvalkirstain/PickScore_v1", ("reward", "reward_minus_21"), "PickScore v1"
    ),
    "lpips": EncoderRow(
        f"{HERE}.lpips:load",
        None,
        IMAGE,
        "LPIPS v0.1, a distance",
        f"{CONVERTED} lpips=FOLDER of both files (torchvision's alexnet or vgg16, weights/v0.1 of the package lpips)",
    ),
}


def split_name(text: str) -> tuple[str, str | None]:
    """ "csd=FOLDER" -> (row, source); "dino" -> ("dino", its default). Raises UserError for an unknown name and where
    a source is needed."""
    name, _, source = text.partition("=")
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}: {nearest(name, list(ENCODERS))}")
    row = ENCODERS[name]
    if not source and row.source is None:
        raise UserError(f"encoder {name} needs a source: {row.needs}")
    return name, source or row.source or None


def load(text: str, device: str = "cpu") -> Any:
    """The encoder of "NAME" or "NAME=SOURCE" (a file, a folder or a hub id). Raises UserError in one line where it is
    not there: what to pass, or to convert."""
    name, source = split_name(text)
    return load_object(ENCODERS[name].build)(source, device, name)


def load_all(chosen: Sequence[str | Instrument], device: str = "cpu") -> list[Any]:
    """`load` for each that is not loaded; UserError when one name is given twice, since scores are stored by name."""
    names = [split_name(one)[0] if isinstance(one, str) else one.name for one in chosen]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"encoder {twice[0]} is given twice: scores are stored by this name")
    return [load(one, device) if isinstance(one, str) else one for one in chosen]


def load_transformers(source: Path | str, device: str = "cpu", row: str | None = None) -> Encoder:
    """`load_encoder` as a row's function."""
    return load_encoder(source, device, row)
