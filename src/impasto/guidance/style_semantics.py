"""Style and semantic guidance (FineStyle, Zhang et al. 2024): one rule that holds FineStyle's sampling and StyleDrop's.

    v = S(t) + lambda1 [S(t) - B(t)] + lambda2 [S(t) - S(n2)] + lambda_base [B(t) - B(n1)]

S: prediction with the style's adapters, B: without them. t: prompt. n1: null prompt of the base, n2: null prompt of the
style. v is whatever the model predicts (noise, velocity); a masked-token model's logits follow the same rule.

- (lambda1, lambda2, 0) with n2 = "" is FineStyle: lambda1 brings the style, lambda2 the meaning of the prompt.
- (lambda_A, 0, lambda_B) is StyleDrop (Sohn et al. 2023, arXiv 2306.00983, equation 4).
- (0, w - 1, 0) is classifier-free guidance of scale w with the negative prompt n2; (w - 1, 0, w - 1) has the adapter in
  the positive branch alone, B(n1) + w [S(t) - B(n1)]; (0, 0, 0) is S(t), to the bit.
- n2 = the style words: lambda2 weighs what the words of the content add inside the adapted model.

The pipeline itself has no guidance scale then, so that models without negative prompts (FLUX) follow the rule as well.
A prediction of coefficient 0 is not computed; the others are rows of one call of the denoiser.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from impasto.families.base import Family
from impasto.guidance.base import Encode, Guidance, Rows, Sampling, join
from impasto.guidance.composed import replace, texts
from impasto.guidance.config import StyleSemantics
from impasto.guidance.style_guidance import combine, predict, replaced_forward, split_rows

PROMPT = "prompt"


def terms(settings: StyleSemantics) -> dict[tuple[bool, str], float]:
    """{(with the style, PROMPT, "n1" or "n2"): coefficient of its prediction}, those with the style first, without
    those of coefficient 0. They add up to 1."""
    style, semantics, base = settings.weights
    coefficients = {
        (True, PROMPT): 1 + style + semantics,
        (True, "n2"): -semantics,
        (False, PROMPT): base - style,
        (False, "n1"): -base,
    }
    return {term: c for term, c in coefficients.items() if c}


@dataclass(frozen=True)
class StyleSemanticsGuidance(Guidance):
    """The rule above on one base."""

    settings: StyleSemantics
    family: Family

    @property
    def prompts(self) -> tuple[str, ...]:
        """The null prompts that it uses."""
        used = {name for _, name in terms(self.settings)}
        return tuple(text for name, text in self.nulls.items() if name in used)

    @property
    def nulls(self) -> dict[str, str]:
        return {"n1": self.settings.n1 or "", "n2": self.settings.n2 or ""}

    @contextmanager
    def apply(self, pipe: Any, rows: Rows) -> Iterator[dict[str, Any]]:
        weights = terms(self.settings)
        if weights == {(True, PROMPT): 1.0} and rows.halves == 1:
            yield {}
            return
        used = {name for _, name in weights}
        nulls = {name: rows.encode(text) for name, text in self.nulls.items() if name in used}
        with guiding(self.family, getattr(pipe, self.family.part), weights, nulls, rows.halves == 2):
            yield {"guidance_scale": max(rows.guidance, 2.0)} if rows.halves == 2 else {}

    def info(self, prompt: str) -> dict[str, Any]:
        style, semantics, base = self.settings.weights
        named = {} if self.settings.preset is None else {"preset": self.settings.preset}
        weights = {"lambda1": style, "lambda2": semantics, "lambda_base": base}
        return {"style_semantics": weights | self.nulls | named}


def bind(settings: StyleSemantics, family: Family, sampling: Sampling, encode: Encode) -> StyleSemanticsGuidance:
    return StyleSemanticsGuidance(settings, family)


@contextmanager
def guiding(
    family: Family,
    denoiser: Any,
    weights: Mapping[tuple[bool, str], float],
    nulls: Mapping[str, Mapping[str, Tensor]],
    halves: bool,
) -> Iterator[None]:
    """While it holds, each call of `denoiser` returns the combined prediction v.

    weights: as `terms` has them. nulls: the conditions of "n1" and "n2", a row each. halves: whether rows of a negative
    prompt come before those of the prompt; both halves of the result are then v, which any guidance scale leaves.
    """
    plain = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        each, _, prompt = split_rows(args, kwargs, halves)
        calls = {PROMPT: prompt}
        for name, cond in nulls.items():
            calls[name] = (prompt[0], replace(prompt[1], texts(family, join([dict(cond)] * each))))
        v = combine(weights.values(), predict(denoiser, plain, list(weights), calls, each))
        return (torch.cat([v, v]) if halves else v,)

    with replaced_forward(denoiser, forward):
        yield
