"""Composed prompts: one conditional prediction out of those of several prompts (InstaStyle, eq. 12).

    e = e_0 + w [(1 - beta) (e_1 - e_0) + beta (e_2 - e_0)] = e_0 + w (e_c - e_0),    e_c = sum_k w_k e_k

e_0: prediction of the negative prompt, e_k: of prompt k, w: guidance scale. The weights w_k, here (1 - beta, beta), add
up to 1, so that the sampler's own classifier-free guidance needs no change; a model without negative prompts (FLUX) has
e = e_c. Compositional guidance: Liu et al. 2022, arXiv 2206.01714. A prompt of weight 0 is not computed; the others are
rows of one call of the denoiser.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import fsum
from typing import Any

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.guidance.base import Guidance, Rows, join
from impasto.guidance.style_guidance import combine, join_rows, prediction, replaced_forward, split_rows

Texts = Mapping[str, Any]
"""Keyword arguments of a denoiser that hold the prompt, rows first."""


def texts(family: Family, condition: Condition) -> dict[str, Any]:
    """A condition as the family's denoiser takes it.

    encoder_hidden_states; transformers the pooled text beside it, SDXL in added_cond_kwargs.
    """
    rows = {name: t.to(family.device, family.dtype) for name, t in condition.items()}
    found: dict[str, Any] = {"encoder_hidden_states": rows["text"]}
    if "pooled" in rows and family.part == "unet":
        return found | {"added_cond_kwargs": {"text_embeds": rows["pooled"]}}
    return found | ({family.pooled_argument: rows["pooled"]} if "pooled" in rows else {})


def check_weights(weights: Sequence[float], prompts: int) -> None:
    """Raise UserError unless there is a weight in [0, 1] for each prompt, together 1."""
    if len(weights) != prompts:
        raise UserError(f"{prompts} prompts but {len(weights)} weights: give one for each")
    for weight in weights:
        if not 0 <= weight <= 1:
            raise UserError(f"beta, the weight of a prompt, must be from 0 to 1, not {weight:g}")
    if abs(fsum(weights) - 1) > 1e-6:
        raise UserError(f"the weights of the prompts must add up to 1, not {fsum(weights):g}")


class ComposedPrompts(Guidance):
    """e_c of several variants of each prompt.

    variants: prompt -> a prompt per weight; the first one is computed in its place.
    """

    def __init__(self, variants: Callable[[str], Sequence[str]], weights: Sequence[float]) -> None:
        self.variants, self.weights = variants, tuple(weights)

    @contextmanager
    def apply(self, pipe: Any, rows: Rows) -> Iterator[dict[str, Any]]:
        first, *others = zip(*map(self.variants, rows.prompts), strict=True)
        conditions = [texts(rows.family, join([rows.encode(prompt) for prompt in prompts])) for prompts in others]
        with composing(getattr(pipe, rows.family.part), conditions, self.weights, rows.halves == 2):
            yield rows.call(first)

    def info(self, prompt: str) -> dict[str, Any]:
        return {"prompts": list(self.variants(prompt)), "prompt_weights": list(self.weights)}


@contextmanager
def composing(denoiser: Any, others: Sequence[Texts], weights: Sequence[float], halves: bool) -> Iterator[None]:
    """While it holds, the conditional rows of each call of `denoiser` are e_c.

    others: `texts` of prompts 2.., each with a row per image; the caller's own is prompt 1. weights: of all. halves:
    whether the rows of the negative prompt come before those of the prompt, as diffusers has them under guidance; they
    are returned as they are. Raises UserError for weights that do not fit.
    """
    check_weights(weights, 1 + len(others))
    plain = denoiser.forward
    used = [(weight, text) for weight, text in zip(weights, (None, *others), strict=True) if weight]

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        each, first, prompt = split_rows(args, kwargs, halves)
        calls = [first] if halves else []
        calls += [prompt if text is None else (prompt[0], replace(prompt[1], text)) for _, text in used]
        args, kwargs = join_rows(calls, each)
        predictions = list(prediction(plain(*args, **kwargs)).split(each))
        negative = [predictions.pop(0)] if halves else []
        return (torch.cat([*negative, combine([weight for weight, _ in used], predictions)]),)

    with replaced_forward(denoiser, forward):
        yield


def replace(kwargs: Mapping[str, Any], text: Texts) -> dict[str, Any]:
    """`kwargs` with the values of `text`; a dict in it replaces the entries that it has."""
    return dict(kwargs) | {
        name: replace(kwargs[name], value) if isinstance(value, Mapping) else value for name, value in text.items()
    }
