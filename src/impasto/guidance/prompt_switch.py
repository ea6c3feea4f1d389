"""Prompt switching: one prompt while the picture is noisier than a log-SNR, another from there on.

Choi et al., "Style-Friendly SNR Sampler", arXiv 2411.14793 v3, section 3.1 and figure 4: where along the sampling a
style is decided is seen by leaving its words out before, or after, a log-SNR.

The log-SNR of step i is that of the latent which the model is evaluated on in that step, as its timestep states it. A
rectified flow starts from pure noise, so its first step has -inf. Prompt A is used in the steps whose log-SNR is below
`at`, prompt B in all others; `at = -inf` is B alone, `at = inf` A alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from impasto.errors import UserError
from impasto.families.base import Family

Call = Mapping[str, Tensor]
"""The part of a pipeline's call that says the prompt: `Family.call_arguments`."""


@dataclass(frozen=True)
class PromptSwitch:
    """From a picture's own prompt (A) to `to` (B) at the log-SNR `at`.

    to: a prompt, in which `{prompt}` stands for A, or one for each A. log_snr: of every step, filled in by `on`.
    """

    to: str | Mapping[str, str]
    at: float
    log_snr: tuple[float, ...] = ()

    def on(self, log_snr: Sequence[float]) -> "PromptSwitch":
        """On the grid of a base. Raises UserError where `at` is finite, and one prompt would be used in all steps."""
        low, high = min(log_snr), max(log_snr)
        if math.isnan(self.at) or (math.isfinite(self.at) and not low < self.at <= high):
            finite = [level for level in log_snr if math.isfinite(level)]
            steps = f"its {len(log_snr)} steps have" if len(log_snr) > 1 else "its one step has"
            reach = f"log-SNR {finite[0]:.2f} to {high:.2f}" if finite else "pure noise"
            noise = ", after a first one of pure noise" if finite and low == -math.inf else ""
            raise UserError(
                f"switch-at {self.at:g} is outside of the sampling of this base: {steps} {reach}{noise}; "
                "give a value between, or =-inf for the second prompt alone, =inf for the first"
            )
        if isinstance(self.to, str) and not self.to.strip():
            raise UserError("switch-to is empty: give the prompt to switch to; {prompt} in it stands for the first one")
        return replace(self, log_snr=tuple(log_snr))

    def second(self, prompt: str) -> str:
        """Prompt B of a picture whose prompt A is `prompt`."""
        return self.to.replace("{prompt}", prompt) if isinstance(self.to, str) else self.to[prompt]

    @property
    def in_second(self) -> list[bool]:
        """Whether a step uses prompt B."""
        return [level >= self.at for level in self.log_snr]

    @property
    def share(self) -> float:
        """The share of the steps that use prompt A."""
        return 1 - sum(self.in_second) / len(self.in_second)

    def info(self, prompt: str) -> dict[str, Any]:
        """What the picture tells: valid JSON, an infinite log-SNR as null.

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


def finite(level: float) -> float | None:
    """A log-SNR for JSON, which knows no infinity."""
    return round(level, 6) if math.isfinite(level) else None


def grid(family: Family, steps: int, size: int) -> list[float]:
    """The log-SNR of every step of the base's own sampling of square pictures; -inf for pure noise."""
    side = size // (family.unit // family.patch)
    return family.sampling_levels(steps, (side, side)).tolist()


@contextmanager
def switching(family: Family, pipe: Any, switch: PromptSwitch, calls: tuple[Call, Call]) -> Iterator[dict[str, Any]]:
    """Yields the arguments of the pipeline's call that draw with both prompts (A, B), given as those of each alone.

    The tensors change at the end of a step, by `callback_on_step_end`, whose names for them are the family's
    `callback_tensors`; with classifier-free guidance they are those of the negative prompt and of the prompt, in this
    order. What a callback cannot change (FLUX's pooled text) is put in before the denoiser is asked.
    """
    uses = switch.in_second
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
