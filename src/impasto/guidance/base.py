"""The guidance protocol: how a method takes part in sampling. `sampling.sample` knows no guidance by name."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from impasto.families.base import Condition, Family, MakeScheduler

Encode = Callable[[str], Condition]
"""Prompt -> condition of one row."""


class Sampling(Protocol):
    """What a guidance may know of the sampling settings, filled in for a base."""

    @property
    def steps(self) -> int | None: ...

    @property
    def guidance(self) -> float | None: ...

    @property
    def negative(self) -> str | None: ...

    @property
    def size(self) -> int | None: ...

    @property
    def height(self) -> int | None: ...

    def scheduler(self, family: Family) -> MakeScheduler | None:
        """What makes the scheduler that is used instead of the base's own; None for the base's own."""
        ...


@dataclass(frozen=True)
class Rows:
    """The images of one call of the pipeline.

    Attributes:
        family: The base.
        encode: Prompt -> condition.
        prompts: One per row.
        leading: So many of the first prompts are a guidance's own; their images are dropped.
        negative: The negative prompt of all rows; None where the pipeline computes none.
        guidance: The pipeline's guidance scale.
    """

    family: Family
    encode: Encode
    prompts: tuple[str, ...]
    leading: int
    negative: str | None
    guidance: float

    @property
    def halves(self) -> int:
        """2 where the denoiser is called with the rows of the negative prompt before those of the prompts, else 1."""
        return 1 if self.negative is None else 2

    def call(self, prompts: Sequence[str] | None = None) -> dict[str, Any]:
        """The pipeline's arguments that state these prompts; by default those of the rows."""
        prompts = self.prompts if prompts is None else prompts
        cond = join([self.encode(prompt) for prompt in prompts])
        negative = None if self.negative is None else join([self.encode(self.negative)] * len(prompts))
        return self.family.call_arguments(cond, negative)


class Guidance(Protocol):
    """One guidance on one base.

    Attributes:
        leading: Prompts of rows that come before the images of every call.
        needs_negative: Whether the pipeline has to call the denoiser with the negative prompt too, whatever the
            guidance scale.
        prompts: Those that it encodes beside the rows', whatever the rows are.
    """

    leading: tuple[str, ...] = ()
    needs_negative: bool = False
    prompts: tuple[str, ...] = ()

    def apply(self, pipe: Any, rows: Rows) -> AbstractContextManager[dict[str, Any]]:
        """Holds while the pipeline generates these rows; yields the arguments of its call that change."""
        ...

    def info(self, prompt: str) -> dict[str, Any]:
        """What the metadata of an image of `prompt` states of it: values that JSON can hold."""
        return {}


def join(conds: Sequence[Condition]) -> Condition:
    """One condition whose rows are those of all."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
