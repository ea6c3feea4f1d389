"""Settings of the adapters, and of what is trained of the text encoders."""

from dataclasses import dataclass

from impasto.coerce import check_numbers


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank updates B A of linear and convolution layers."""

    rank: int = 32
    """Rank of the adapter."""
    alpha: float | None = None
    """Scale = alpha / rank; the rank when not given."""
    targets: tuple[str, ...] = ("attention",)
    """Layers: kinds (attention; image_stream, text_stream; convolution) or endings of layer names (to_q)."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("rank", "alpha"))


@dataclass(frozen=True, kw_only=True)
class FrozenText:
    """The text encoders stay as they are; captions are encoded once."""


@dataclass(frozen=True, kw_only=True)
class TextLoRA:
    """A LoRA of the CLIP text encoders is trained as well; never of T5."""

    lr: float | None = None
    """Its learning rate; half of lr when not given (with prodigy: lr)."""
    rank: int | None = None
    """Its rank; the adapter's, or 32, when not given."""
    alpha: float | None = None
    """Its scale = alpha / rank; the adapter's, or its rank, when not given."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("lr", "rank", "alpha"), prefix="text.")
