"""Settings of the objectives and of prior preservation."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from impasto.coerce import check_numbers
from impasto.errors import UserError

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """Mean squared error of the prediction."""

    extra_forwards: ClassVar[int] = 0
    needs_base: ClassVar[bool] = False
    teachers: ClassVar[int] = 0
    masked: ClassVar[bool] = False
    itemwise: ClassVar[bool] = True

    weighting: str = "none"
    """Weight of the loss by noise level: none, min-snr, soft-min-snr, debiased; not for rectified flows."""
    gamma: float = 5.0
    """SNR at which min-snr and soft-min-snr turn."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("gamma",))


@dataclass(frozen=True, kw_only=True)
class DCO:
    """Direct consistency optimisation: the error beside the base's own."""

    extra_forwards: ClassVar[int] = 1
    needs_base: ClassVar[bool] = True
    teachers: ClassVar[int] = 0
    masked: ClassVar[bool] = False
    itemwise: ClassVar[bool] = True

    beta: float = 1.0
    """How far an item is fitted beyond the base; 1 in the Style-Friendly paper, 1000 in DCO's own code."""
    reduction: Literal["mean", "sum"] = "mean"
    """An item's error is the mean or the sum over its latents."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("beta",))


@dataclass(frozen=True, kw_only=True)
class Distill:
    """The predictions of a tuned base, the teacher; see `objectives.distill`."""

    extra_forwards: ClassVar[int] = 1
    needs_base: ClassVar[bool] = False
    teachers: ClassVar[int] = 1
    masked: ClassVar[bool] = False
    itemwise: ClassVar[bool] = True

    teacher: str | None = None
    """The base to learn from, as --base takes it: of the same architecture, latents, schedule and prediction."""
    teacher_style: Path | None = None
    """A style folder that the teacher carries, at strength 1: how a StyleInject style becomes a LoRA."""
    shared: bool = True
    """The teacher is conditioned by the student's text encoder; without it by its own, on the captions' second form
    (teacher_text in metadata.jsonl, or --pairs)."""
    out_weight: float = 1.0
    """Weight of OutKD, the mean squared difference of the predictions."""
    feature_weight: float | None = None
    """Weight of FeatKD, the sum over down, mid and up blocks of the mean squared difference of their outputs. 1e-3 when
    not given; 0 without a shared text encoder, and for transformers, which have no such blocks."""

    def __post_init__(self) -> None:
        check_numbers(self, at_least_0=("out_weight", "feature_weight"), prefix="objective.")
        if not self.shared and self.feature_weight:
            raise UserError("FeatKD needs a shared text encoder: leave out --objective.feature-weight")
        if not self.out_weight and self.feature_weight == 0:
            raise UserError("out_weight and feature_weight are both 0: nothing would be learnt")


@dataclass(frozen=True, kw_only=True)
class MaskedTokens:
    """Cross-entropy on the masked tokens, for bases such as Muse."""

    extra_forwards: ClassVar[int] = 0
    needs_base: ClassVar[bool] = False
    teachers: ClassVar[int] = 0
    masked: ClassVar[bool] = True
    itemwise: ClassVar[bool] = False

    label_smoothing: float = 0.0
    """Share of the target that is spread over all tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"objective.label_smoothing must be from 0 to below 1, not {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: what the base makes of other captions stays as it is."""

    weight: float = 0.0
    """Weight of the prior loss; 0 is off."""
    batch: int = 2
    """Images of the base per forward pass, when the weight is above 0; never more than batch."""
    prompt: Append[tuple[str, ...]] = ()
    """A caption whose predictions are preserved; may be given several times. Those of the base's card when not
    given."""
    per_prompt: int = 1
    """Images that the base generates for each caption."""
    image: Append[tuple[Path, ...]] = ()
    """An image of the class, or a folder of them, instead of those that the base generates; with prior.prompt as its
    caption where it has none of its own."""
    target: Literal["prediction", "data"] = "prediction"
    """What the adapter is compared with: the base's own prediction, or the objective's regression target on the image
    (DreamBooth's loss)."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("batch", "per_prompt"), at_least_0=("weight",), prefix="prior.")
        if self.image and not self.weight:
            raise UserError("prior.image has no effect without prior preservation: add --prior.weight 1")
