"""One optimiser step, and the trainable parameters between steps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.adapters.text_encoder import TextConditioning
from impasto.config import TrainConfig
from impasto.data.draws import Draws, split_batch
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.objectives.base import Objective
from impasto.training.trainable import TrainableParameters
from impasto.training.workers import Workers


class Trainer:
    """Runs steps: draws, objective, backward passes, clipping, optimiser, moving average."""

    def __init__(
        self,
        config: TrainConfig,
        family: Family,
        text: TextConditioning,
        objective: Objective,
        draws: Draws,
        trainable: TrainableParameters,
        workers: Workers,
    ) -> None:
        self.config, self.family, self.text, self.objective = config, family, text, objective
        self.draws, self.trainable, self.workers = draws, trainable, workers
        bf16 = family.precision == "bf16"
        self.autocast = torch.autocast(family.device.split(":")[0], torch.bfloat16, enabled=bf16)

    def step(self, n: int, interrupted: bool = False) -> tuple[dict[str, Any], bool]:
        """Step n = 1, 2, ...; returns its row of metrics.jsonl, and whether any process was interrupted.

        Raises UserError when the loss, or a parameter after the update, is NaN or infinite.
        """
        parts, levels = self.backward(n)
        row = {name: sum(part[name].item() for part in parts) / self.config.optim.accumulate for name in parts[0]}
        *values, stop = self.workers.mean([*row.values(), float(interrupted)])
        row: dict[str, Any] = dict(zip(row, values, strict=True))
        self.workers.average_gradients(self.trainable.parameters)
        row |= self.trainable.step(n) if math.isfinite(row["loss"]) else {"grad_norm": math.nan}
        if not (math.isfinite(row["grad_norm"]) and self.trainable.finite()):
            what = "adapter" if math.isfinite(row["grad_norm"]) else "loss"
            raise NotFiniteError(f"the {what} is NaN or infinite at step {n} (lr {self.config.optim.lr:g})")
        return {"step": n} | row | {"lam": [round(lam, 4) for lam in levels]}, bool(stop)

    def backward(self, n: int) -> tuple[list[dict[str, Tensor]], list[float]]:
        """The gradients of step n; returns the parts that the objective logs, weighted by their share of the items, and
        the noise levels of all processes."""
        parts: list[dict[str, Tensor]] = []
        levels: list[float] = []
        optim, workers = self.config.optim, self.workers
        most = self.draws.at_once(n, self.family.patch) if self.config.objective.itemwise else optim.batch
        for micro in range(optim.accumulate):
            drawn = self.draws(n, micro * workers.size + workers.index)
            for share, (batch, lam_B, own) in split_batch(drawn, most):
                with self.autocast:
                    losses = self.objective(self.family, self.text.reencode(batch), lam_B, own)
                (losses["loss"] * share / optim.accumulate).backward()
                parts.append({name: value.detach() * share for name, value in losses.items()})
            levels += workers.gather(drawn[1].tolist())
        return parts, levels


class NotFiniteError(UserError):
    """The loss or a parameter is NaN or infinite."""


def mean_of_last(losses: Sequence[float]) -> float | None:
    """The mean of the last tenth of the losses, None where there are none."""
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else None
