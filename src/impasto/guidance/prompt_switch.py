"""Prompt switching: one prompt while the picture is noisier than a log-SNR, another from there on.

Choi et al., "Style-Friendly SNR Sampler", arXiv 2411.14793 v3, section 3.1 and figure 4: where along the sampling a
style is decided is seen by leaving its words out before, or after, a log-SNR.

The log-SNR of step i is that of the latent which the model is evaluated on in that step, as its timestep states it. A
rectified flow starts from pure noise, so its first step has -inf. Prompt A is used in the steps whose log-SNR is below
`at`, prompt B in all others; `at = -inf` is B alone, `at = inf` A alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family, MakeScheduler
from impasto.guidance.base import Encode, Guidance, Rows, Sampling
from impasto.guidance.config import PromptSwitch

Call = Mapping[str, Tensor]
"""The part of a pipeline's call that says the prompt: `Family.call_arguments`."""


@dataclass(frozen=True)
class SwitchedPrompts(Guidance):
    """From an image's own prompt A to prompt B.

    second: prompt A -> prompt B. at: the log-SNR, see above. log_snr: of every step.
    """

    family: Family
    second: Callable[[str], str]
    at: float
    log_snr: tuple[float, ...]

    @property
    def in_second(self) -> list[bool]:
        """Whether a step uses prompt B."""
        return [level >= self.at for level in self.log_snr]

    @property
    def share(self) -> float:
        """The share of the steps that use prompt A."""
        return 1 - sum(self.in_second) / len(self.in_second)

    def apply(self, pipe: Any, rows: Rows) -> AbstractContextManager[dict[str, Any]]:
        own = rows.prompts[rows.leading :]
        second = rows.call([*rows.prompts[: rows.leading], *map(self.second, own)])
        return switching(self.family, pipe, self.in_second, (rows.call(), second))

    def info(self, prompt: str) -> dict[str, Any]:
        """An infinite log-SNR is null.

        log_snr: of every step; prompt_of_step: 0 for `prompt`, 1 for `switch_to`; switch_share: of the steps, that
        used `prompt`.
        """
        return {
            "switch_to": self.second(prompt),
            "switch_at": finite(self.at),
            "log_snr": [finite(level) for level in self.log_snr],
            "prompt_of_step": [int(second) for second in self.in_second],
            "switch_share": round(self.share, 6),
        }


def bind(settings: PromptSwitch, family: Family, sampling: Sampling, encode: Encode) -> SwitchedPrompts:
    """Raises UserError where one prompt would be used in all steps."""
    if not family.callback_tensors:
        raise UserError("switch-to is for bases that denoise: this one draws tokens, leave it out")
    assert settings.at is not None and sampling.steps is not None and sampling.size is not None
    levels = grid(family, sampling.steps, sampling.size, sampling.scheduler(family), sampling.height)
    return switch_prompts(family, settings.second, settings.at, levels)


def switch_prompts(
    family: Family, second: Callable[[str], str], at: float, log_snr: Sequence[float]
) -> SwitchedPrompts:
    """On a sampling grid. Raises UserError where `at` is finite, and one prompt would be used in all steps."""
    low, high = min(log_snr), max(log_snr)
    if math.isnan(at) or (math.isfinite(at) and not low < at <= high):
        finite = [level for level in log_snr if math.isfinite(level)]
        steps = f"its {len(log_snr)} steps have" if len(log_snr) > 1 else "its one step has"
        reach = f"log-SNR {finite[0]:.2f} to {high:.2f}" if finite else "pure noise"
        noise = ", after a first one of pure noise" if finite and low == -math.inf else ""
        raise UserError(
            f"switch-at {at:g} is outside of the sampling of this base: {steps} {reach}{noise}; "
            "give a value between, or =-inf for the second prompt alone, =inf for the first"
        )
    return SwitchedPrompts(family, second, at, tuple(log_snr))


def finite(level: float) -> float | None:
    """A log-SNR for JSON, which knows no infinity."""
    return round(level, 6) if math.isfinite(level) else None


def grid(
    family: Family, steps: int, size: int, make: MakeScheduler | None = None, height: int | None = None
) -> list[float]:
    """The log-SNR of every step when images of this width and height (square without it) are sampled, by the base's own
    scheduler or the one that `make` makes; -inf for pure noise."""
    latent = family.unit // family.patch
    return family.sampling_levels(steps, ((height or size) // latent, size // latent), make).tolist()


@contextmanager
def switching(family: Family, pipe: Any, uses: Sequence[bool], calls: tuple[Call, Call]) -> Iterator[dict[str, Any]]:
    """Yields the arguments of the pipeline's call for both prompts (A, B), given as those of each alone. uses: per
    step, whether it uses B.

    The tensors change at the end of a step, by `callback_on_step_end`, whose names for them are the family's
    `callback_tensors`; with classifier-free guidance they are those of the negative prompt and of the prompt, in this
    order. What a callback cannot change (FLUX's pooled text) is put in before the denoiser is asked.
    """
    now = calls[uses[0]]

    def after(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal now
        if step + 1 == len(uses) or uses[step + 1] == uses[step]:
            return {}
        now = calls[uses[step + 1]]
        new = {name: guided(now, argument) for argument, name in family.callback_tensors.items()}
        for name, tensor in new.items():
            if tensor.shape != tensors[name].shape:
                raise RuntimeError(f"{name} is {list(tensors[name].shape)} in the pipeline, {list(tensor.shape)} here")
        return new

    def before(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, inputs | {name: now[argument] for argument, name in family.denoiser_inputs.items()}

    denoiser = getattr(pipe, family.part)
    handle = denoiser.register_forward_pre_hook(before, with_kwargs=True) if family.denoiser_inputs else None
    try:
        names = list(family.callback_tensors.values())
        yield {**now, "callback_on_step_end": after, "callback_on_step_end_tensor_inputs": names}
    finally:
        if handle is not None:
            handle.remove()


def guided(call: Call, argument: str) -> Tensor:
    """The tensor as a pipeline holds it in its loop: behind that of the negative prompt, where there is one."""
    negative = call.get(f"negative_{argument}")
    return call[argument] if negative is None else torch.cat([negative, call[argument]])
