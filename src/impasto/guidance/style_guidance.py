"""Style guidance: how the predictions with and without the style combine in each sampling step.

    v = S(y) + (w - 1) [S(y) - S(n)] + s [S(y) - B(y)] + b [B(y) - B(n)]

S: prediction with the style's adapters, B: without them. y: prompt, n: negative prompt. w: guidance scale,
s: style guidance, b: base guidance. v is whatever the model predicts (noise, velocity).

- s = b = 0 is ordinary classifier-free guidance of the adapted model.
- FineStyle's sampling (Zhang et al. 2024): lambda1 = s, lambda2 = w - 1, b = 0. With the style words alone as n, the
  second term is what the words of the content add inside the adapted model.
- StyleDrop (Sohn et al. 2023, arXiv 2306.00983, equation 4): lambda_A = s, lambda_B = b, w = 1.
- Reward guidance of Direct Consistency Optimization (Lee et al. 2024, arXiv 2402.12004) with the weights w' and s':
  w = 1, s = s' - 1, b = w' - 1. For s' = w' it comes to B(n) + w' [S(y) - B(n)].

A model without negative prompts (FLUX) has w = 1 and b = 0: v = S(y) + s [S(y) - B(y)].

A prediction of coefficient 0 is not computed; those that are left are rows of one call of the denoiser.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from impasto.adapters.lora import disabled
from impasto.errors import UserError
from impasto.guidance.base import Guidance, Rows

PROMPT, NEGATIVE = "prompt", "negative"


@dataclass(frozen=True)
class Weights:
    """guidance: w, >= 0; 1 where the pipeline computes no negative prompt. style: s, >= 0. base: b, >= 0."""

    guidance: float = 1.0
    style: float = 0.0
    base: float = 0.0

    @property
    def terms(self) -> dict[tuple[bool, str], float]:
        """{(with the style, PROMPT or NEGATIVE): coefficient of its prediction}, those with the style first, without
        those of coefficient 0. They add up to 1."""
        coefficients = {
            (True, PROMPT): self.guidance + self.style,
            (True, NEGATIVE): 1 - self.guidance,
            (False, PROMPT): self.base - self.style,
            (False, NEGATIVE): -self.base,
        }
        return {term: c for term, c in coefficients.items() if c}

    @property
    def info(self) -> dict[str, float]:
        """What the metadata of an image states of it."""
        return {"style_guidance": self.style} | ({"base_guidance": self.base} if self.base else {})


@dataclass(frozen=True)
class StyleGuidance(Guidance):
    """The rule above with these weights; `weights.guidance` is the pipeline's own scale, or 1 where it has none."""

    weights: Weights

    @property
    def needs_negative(self) -> bool:
        return self.weights.base > 0

    @contextmanager
    def apply(self, pipe: Any, rows: Rows) -> Iterator[dict[str, Any]]:
        guided = rows.halves == 2
        with guiding(getattr(pipe, rows.family.part), self.weights, guided):
            yield (
                {"guidance_scale": max(rows.guidance, 2.0)} if guided else {}
            )  # a scale of 1 or less would drop a half


def check_weight(weight: float, name: str) -> None:
    """Raise UserError unless the weight is a finite number from 0 on."""
    if not 0 <= weight < math.inf:
        raise UserError(f"{name} must be a finite number from 0 on, not {weight:g}")


def check_switchable(denoiser: Any) -> None:
    """Raise UserError unless the denoiser has adapters that can be switched off."""
    if not getattr(denoiser, "peft_config", None):
        raise UserError("style-guidance compares a style with the base: give a --style that changes the denoiser")
    if any(layer.merged for layer in tuner_layers(denoiser)):
        raise UserError(
            "style-guidance compares a style with the base, and this style is merged into its weights: unfuse it "
            "(pipe.unfuse_lora()), or use --style-guidance 0"
        )


@contextmanager
def guiding(denoiser: Any, weights: Weights, halves: bool) -> Iterator[None]:
    """While it holds, each call of `denoiser` returns the combined prediction v.

    halves: whether the pipeline calls with the rows of the negative prompt before those of the prompt, as diffusers
    does for guidance. Both halves of the result are then v, so that any guidance scale of the pipeline leaves it.
    """
    terms, plain = weights.terms, denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        each, negative, prompt = split_rows(args, kwargs, halves)
        calls = {PROMPT: prompt, NEGATIVE: prompt if negative is None else negative}
        v = combine(terms.values(), predict(denoiser, plain, list(terms), calls, each))
        return (torch.cat([v, v]) if halves else v,)

    with replaced_forward(denoiser, forward):
        yield


@contextmanager
def replaced_forward(denoiser: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While it holds, `denoiser` calls `forward`."""
    plain, own_attribute = denoiser.forward, "forward" in vars(denoiser)  # a hook's
    denoiser.forward = forward
    try:
        yield
    finally:
        if own_attribute:
            denoiser.forward = plain
        else:
            del denoiser.forward


def split_rows(args: Any, kwargs: Any, halves: bool) -> tuple[int, Any, Any]:
    """(number of images, call for the rows of the negative prompt, call for those of the prompt) of a denoiser's call;
    a call is (args, kwargs), None where there is no negative prompt."""
    n = len(args[0] if args else kwargs["hidden_states"])  # a U-Net's is given without its name
    each = n // 2 if halves else n
    prompt = map_rows((args, kwargs), n, lambda t: t[-each:])
    return each, map_rows((args, kwargs), n, lambda t: t[:each]) if halves else None, prompt


def combine(weights: Iterable[float], predictions: Sequence[Tensor]) -> Tensor:
    """sum_i w_i p_i in float32, in the predictions' dtype."""
    v = sum(w * p.float() for w, p in zip(weights, predictions, strict=True))
    assert isinstance(v, Tensor)
    return v.to(predictions[0].dtype)


def predict(
    denoiser: Any, forward: Any, terms: Sequence[tuple[bool, str]], calls: Mapping[str, Any], each: int
) -> list[Tensor]:
    """The predictions of `terms`, (with the style, name of the text), those with the style first.

    calls: by name of the text (args, kwargs) of `forward` with `each` rows. One call of it where the style's share can
    be taken out row by row (plain LoRA), else one with the adapters and one without.
    """

    def run(chosen: Sequence[tuple[bool, str]]) -> list[Tensor]:
        args, kwargs = join_rows([calls[text] for _, text in chosen], each)
        return list(prediction(forward(*args, **kwargs)).chunk(len(chosen)))

    styled, plain = ([term for term in terms if term[0] == kind] for kind in (True, False))
    if not plain:
        return run(styled)
    if styled and is_plain_lora(denoiser):
        with without_style(denoiser, len(styled) * each, len(terms) * each):
            return run(terms)
    found = run(styled) if styled else []
    with disabled(denoiser):
        return found + run(plain)


def prediction(output: Any) -> Tensor:
    """A denoiser's output, a tensor or the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def tuner_layers(denoiser: Any) -> list[Any]:
    """The layers that carry adapters, of any kind."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]


def is_plain_lora(denoiser: Any) -> bool:
    """Whether every adapter adds B A x to its layer's output and nothing else: LoRA, not DoRA."""
    from peft.tuners.lora import LoraLayer

    layers = tuner_layers(denoiser)
    return all(isinstance(layer, LoraLayer) and not layer.lora_variant for layer in layers)


@contextmanager
def without_style(denoiser: Any, first: int, rows: int) -> Iterator[None]:
    """While it holds, rows `first` to `rows` of a call get no LoRA: their outputs of every B are 0, so that a layer
    returns W x for them, to the bit."""

    def drop(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        per = out.shape[0] // rows  # a layer may see several rows of an image's (in FLUX and SD3: one)
        if per * rows != out.shape[0]:
            raise RuntimeError(f"a LoRA layer saw {out.shape[0]} rows in a call of {rows}")
        return torch.cat([out[: first * per], torch.zeros_like(out[first * per :])])

    with ExitStack() as hooks:
        for layer in tuner_layers(denoiser):
            for up in layer.lora_B.values():
                hooks.callback(up.register_forward_hook(drop).remove)
        yield


SHARED = ("img_ids", "txt_ids")
"""Arguments of FLUX's denoiser with a row per token, not per image."""


def map_rows(value: Any, n: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`value`, a structure of tuples, lists and dicts, with `change` applied to its tensors of n rows."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim and len(value) == n else value
    if isinstance(value, dict):
        return {key: one if key in SHARED else map_rows(one, n, change) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_rows(one, n, change) for one in value)
    return value


def join_rows(calls: Sequence[Any], n: int) -> Any:
    """One structure out of several alike: tensors of n rows are joined, all else is that of the first."""
    first = calls[0]
    if isinstance(first, dict):
        return {key: first[key] if key in SHARED else join_rows([call[key] for call in calls], n) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(join_rows(list(parts), n) for parts in zip(*calls, strict=True))
    return torch.cat(list(calls)) if isinstance(first, Tensor) and first.ndim and len(first) == n else first
