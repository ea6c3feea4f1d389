"""Two adapters, one of a style and one of a content, in one image (StyleDrop, Sohn et al. 2023, section 3.4).

    v = (1 - g) S(t) + g C(t),    g from .5 to .7 in the paper

S: prediction with the style's adapters, C: with the content's alone. v is whatever the model predicts (logits, noise,
velocity). Every rule of guidance is linear in S, so this holds for guided predictions as well: each of their terms with
the style is v, those of the base stay. g = 0 is the style alone and g = 1 the content alone, to the bit; between them
each call of the denoiser is two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family
from impasto.guidance.base import Encode, Guidance, Rows, Sampling
from impasto.guidance.config import TwoAdapters
from impasto.guidance.style_guidance import combine, prediction, replaced_forward, tuner_layers

CONTENT = "content"
"""Name of the content's adapter in a pipeline; it is there, and not active, before images are generated."""


@dataclass(frozen=True)
class TwoAdaptersGuidance(Guidance):
    """The rule above. share: g."""

    share: float
    family: Family

    @contextmanager
    def apply(self, pipe: Any, rows: Rows) -> Iterator[dict[str, Any]]:
        denoiser = getattr(pipe, self.family.part)
        if self.share == 0:
            yield {}
        elif self.share == 1:
            with content_alone(denoiser):
                yield {}
        else:
            with mixing(denoiser, self.share):
                yield {}

    def info(self, prompt: str) -> dict[str, Any]:
        return {"content_share": self.share}


def bind(settings: TwoAdapters, family: Family, sampling: Sampling, encode: Encode) -> TwoAdaptersGuidance:
    if settings.content is None:
        raise UserError("content-share goes with --content, the style folder of the content's adapter")
    return TwoAdaptersGuidance(settings.share, family)


@contextmanager
def content_alone(denoiser: Any) -> Iterator[None]:
    """While it holds, the content's adapter is the only active one."""
    before = [(layer, layer._active_adapter) for layer in tuner_layers(denoiser)]
    for layer, _ in before:
        layer._active_adapter = [CONTENT]
    try:
        yield
    finally:
        for layer, names in before:
            layer._active_adapter = names


@contextmanager
def mixing(denoiser: Any, share: float) -> Iterator[None]:
    """While it holds, each call of `denoiser` returns v."""
    plain = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        style = prediction(plain(*args, **kwargs))
        with content_alone(denoiser):
            content = prediction(plain(*args, **kwargs))
        return (combine((1 - share, share), (style, content)),)

    with replaced_forward(denoiser, forward):
        yield
