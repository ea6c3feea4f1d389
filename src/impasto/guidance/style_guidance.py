"""Style guidance: the base draws, and what the style adds to its prediction has a weight of its own.

    v = v_base(n) + w (v_base(y) - v_base(n)) + s (v_style(y) - v_base(y))

n: negative prompt, y: prompt, w: guidance scale, s: style guidance; v is whatever the model predicts. Lee et al. 2024,
"Direct Consistency Optimization" (arXiv 2402.12004), reward guidance. s = 0 is the base alone, s = w the style guided
against the base: v_base(n) + w (v_style(y) - v_base(n)). Bases that know no negative prompt, and guidance of 1 or less,
have w = 1: v_base(y) + s (v_style(y) - v_base(y)).

Without it both halves are the style's, v_style(n) + w (v_style(y) - v_style(n)): guidance then strengthens what the
prompt says within the style, but not the style, of which v_style(n) has as much as v_style(y).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from impasto.adapters.lora import disabled
from impasto.errors import UserError


def check(weight: float, denoiser: Any) -> None:
    """Raise UserError unless the weight is a number that means something, and the denoiser has a style."""
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"style-guidance must be 0 or above, not {weight:g}")
    if not getattr(denoiser, "peft_config", None):
        raise UserError("style-guidance weighs what a style adds: give a --style that changes the denoiser")


@contextmanager
def guiding(denoiser: Any, weight: float, guidance: float | None) -> Iterator[None]:
    """While it holds, a pipeline's own classifier-free guidance on `denoiser` comes to the formula above.

    guidance: w, None where the pipeline does not guide; else its batches are the negative half and the prompt's half.
    Costs half as much again as guidance alone; with weight = guidance nothing, without guidance twice as much.
    """
    plain, own_attribute = denoiser.forward, "forward" in vars(denoiser)  # a hook's

    def styled(args: Any, kwargs: Any) -> Tensor:
        return plain(*args, **kwargs)[0]

    def base(args: Any, kwargs: Any) -> Tensor:
        with disabled(denoiser):
            return plain(*args, **kwargs)[0]

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        everything = (args, kwargs)
        if guidance is None:
            own = base(*everything)
            return (own + weight * (styled(*everything) - own),)
        n = len(args[0] if args else kwargs["hidden_states"])
        negative, prompt = (half(everything, i, n) for i in (0, 1))
        if weight == guidance:
            return (torch.cat([base(*negative), styled(*prompt)]),)
        without, own = base(*everything).chunk(2)
        return (torch.cat([without, own + weight / guidance * (styled(*prompt) - own)]),)

    denoiser.forward = forward
    try:
        yield
    finally:
        if own_attribute:
            denoiser.forward = plain
        else:
            del denoiser.forward


def half(value: Any, i: int, n: int) -> Any:
    """The i-th half of every tensor of n rows within; what has another number of rows is shared by both."""
    if isinstance(value, Tensor):
        return value.chunk(2)[i] if value.ndim and len(value) == n else value
    if isinstance(value, dict):
        return {key: half(one, i, n) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(half(one, i, n) for one in value)
    return value
