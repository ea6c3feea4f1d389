"""Settings of the guidances that are asked for by `impasto generate`, a style's `style.json`, or `generate(...)`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from impasto.errors import UserError, nearest

PARTS = ("queries", "keys", "values")


def flag(name: str) -> Any:
    """A field whose flag is --`name`, without the section's prefix."""
    return tyro.conf.arg(name=name, prefix_name=False)


@dataclass(frozen=True)
class PromptSwitch:
    """Two prompts in one image, see `guidance.prompt_switch`."""

    to: Annotated[str | None, flag("switch-to")] = None
    """A second prompt, used from the log-SNR of --switch-at on; {prompt} in it stands for the first one."""
    at: Annotated[float | None, flag("switch-at")] = None
    """The first prompt is used in the steps whose log-SNR is below this (noisier), the second in all others."""

    def __post_init__(self) -> None:
        if (self.to is None) != (self.at is None):
            missing = "switch-to, the second prompt" if self.to is None else "switch-at, a log-SNR such as -4"
            raise UserError(f"switch-to and switch-at go together: give --{missing}")
        if self.to is not None and not self.to.strip():
            raise UserError("switch-to is empty: give the prompt to switch to; {prompt} in it stands for the first one")

    def second(self, prompt: str) -> str:
        """Prompt B of an image whose prompt A is `prompt`."""
        return (self.to or "").replace("{prompt}", prompt)


@dataclass(frozen=True)
class StyleAligned:
    """A reference image whose style is taken over without training, see `guidance.style_aligned`."""

    fixed_rows: ClassVar[bool] = True
    """The denoiser has to be called with exactly the rows of the pipeline, so style guidance cannot add its own."""
    calls_denoiser: ClassVar[bool] = True
    """The guidance calls the family's denoiser too, so the pipeline has to share it."""

    image: Annotated[Path | None, flag("aligned-to")] = None
    """An image whose style is taken over without training (StyleAligned)."""
    caption: Annotated[str, flag("reference-caption")] = ""
    """What it shows and in what style, in the words of the prompts: "a rocket in unifont style"."""
    shift: Annotated[float | None, flag("aligned-shift")] = None
    """Added to the attention's logits at its tokens: higher is nearer to it, 0 is no shift. The base's card's when not
    given, else log 2, which counts each token twice, as google/style-aligned does for a real reference."""
    scale: Annotated[float, flag("aligned-scale")] = 1.0
    """Factor on its keys; below 1 for images that the base has memorised."""
    adain: Annotated[tuple[str, ...], flag("aligned-adain")] = ("queries", "keys")
    """What takes its statistics: queries, keys, values."""
    share: tyro.conf.Suppress[bool] = True
    """Whether the other rows attend to its keys and values."""

    def __post_init__(self) -> None:
        if self.image is None and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise UserError("reference-caption and aligned-... go with aligned-to: name the reference image")
        for name in self.adain:
            if name not in PARTS:
                raise UserError(f"unknown part {name!r} for AdaIN: {nearest(name, PARTS)}")
        if not 0 < self.scale < math.inf:
            raise UserError(f"aligned-scale, of the reference's keys, must be above 0, not {self.scale}")
        if self.shift is not None and not math.isfinite(self.shift):
            raise UserError(f"aligned-shift must be a finite number (0 is none), not {self.shift}")


PRESETS: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "ordinary": lambda scale: (0.0, scale - 1, 0.0),
    "finestyle": lambda scale: (2.0, scale - 1, 0.0),
    "styledrop": lambda scale: (2.0, 0.0, scale - 1),
    "asymmetric": lambda scale: (scale - 1, 0.0, scale - 1),
}
"""Named weights (lambda1, lambda2, lambda_base) of `StyleSemantics` by the guidance scale; both null prompts are empty.

ordinary: classifier-free guidance of the adapted model. finestyle: FineStyle's form, lambda1 as in the recipe
finestyle-kv. styledrop: StyleDrop's (lambda_A, 0, lambda_B), lambda_A as in its second round. asymmetric: the adapter
in the positive branch alone, B(n1) + scale [S(t) - B(n1)]."""


@dataclass(frozen=True)
class StyleSemantics:
    """Style and semantic guidance, see `guidance.style_semantics`. A value that is not given is the style's own, else 0
    or the empty prompt."""

    replaces_weights: ClassVar[bool] = True
    """The weights are in place of guidance scale, style guidance, base guidance and negative prompt."""

    lambda1: Annotated[float | None, flag("lambda1")] = None
    """Weight of the style: the adapted prediction against the base's."""
    lambda2: Annotated[float | None, flag("lambda2")] = None
    """Weight of the semantics: the prompt against --semantics-null, both adapted; guidance - 1."""
    lambda_base: Annotated[float | None, flag("lambda-base")] = None
    """Weight of the base's own guidance: the prompt against --base-null, both by the base."""
    n1: Annotated[str | None, flag("base-null")] = None
    """Null prompt of the base's guidance."""
    n2: Annotated[str | None, flag("semantics-null")] = None
    """Null prompt of the semantics; "style words" takes the words by which the style's captions name it."""
    preset: Annotated[str | None, flag("guidance-preset")] = None
    """Weights by name, for the guidance scale of --guidance or the base: ordinary, finestyle, styledrop, or asymmetric
    (the adapter in the positive branch alone). Weights and null prompts that are given come first."""

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise UserError(f"unknown guidance-preset {self.preset!r}: {nearest(self.preset, list(PRESETS))}")
        for name in ("lambda1", "lambda2", "lambda_base"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < math.inf:
                raise UserError(f"{name.replace('_', '-')} must be a finite number from 0 on, not {weight:g}")

    def resolved(self, scale: float) -> "StyleSemantics":
        """With the values of the preset where none is given. scale: guidance scale, at least 1."""
        if self.preset is None:
            return self
        names = ("lambda1", "lambda2", "lambda_base", "n1", "n2")
        values = dict(zip(names, (*PRESETS[self.preset](max(scale, 1.0)), "", ""), strict=True))
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    @property
    def weights(self) -> tuple[float, float, float]:
        """(lambda1, lambda2, lambda_base)."""
        return self.lambda1 or 0.0, self.lambda2 or 0.0, self.lambda_base or 0.0

    @property
    def compares_with_base(self) -> bool:
        """Whether the base's prediction is used, so that a style is needed that can be switched off."""
        return self.weights[0] > 0 or self.weights[2] > 0


@dataclass(frozen=True)
class TwoAdapters:
    """The adapter of a content beside the style's, see `guidance.two_adapters`."""

    content: Annotated[str | None, flag("content")] = None
    """A second style folder, trained on a content (a subject), with an optional strength after a colon; mixed with the
    styles in each step."""
    share: Annotated[float, flag("content-share")] = 0.5
    """Its share g of the prediction: (1 - g) style + g content."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"content-share must be from 0 to 1, not {self.share:g}")
