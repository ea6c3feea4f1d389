"""What moves in training: the adapter's parameters, Adam's moments, and the moving average that may be saved instead.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr m^ / (sqrt(v^) + 1e-8),  b1 = .9, b2 = .999
    average = d average + (1 - d) p,  d = min(ema, (1 + step) / (10 + step))

All of it is named tensors, so that a state is one safetensors file.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from impasto.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Moving:
    """Parameters by name, at `done` steps. state: the tensors of a saved state, or {} to begin."""

    def __init__(self, config: TrainConfig, named: Mapping[str, nn.Parameter], done: int, state: Mapping[str, Tensor]):
        self.config, self.named = config, named
        self.parameters = list(named.values())
        self.optimizer = torch.optim.AdamW(  # with weight_decay 0 it is Adam
            self.parameters, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True
        )
        if state:
            self.restore(state, done)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        for name, tensor in zip(named, self.average, strict=False):
            tensor.copy_(state.get(f"average/{name}", tensor))

    def restore(self, state: Mapping[str, Tensor], done: int) -> None:
        for name, p in self.named.items():
            p.data.copy_(state[f"adapter/{name}"])
            if f"exp_avg/{name}" in state:
                moments = {key: state[f"{key}/{name}"].to(p.device) for key in MOMENTS}
                self.optimizer.state[p] = {"step": torch.tensor(float(done), device=p.device), **moments}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state but for the number of steps."""
        tensors = {f"adapter/{name}": p.detach() for name, p in self.named.items()}
        for name, p in self.named.items():
            moments = self.optimizer.state.get(p, {})
            tensors |= {f"{key}/{name}": moments[key] for key in MOMENTS if key in moments}
        return tensors | {f"average/{name}": tensor for name, tensor in zip(self.named, self.average, strict=False)}

    def step(self, step: int) -> dict[str, float]:
        """One update from the gradients, which are cleared; returns the row's "lr" and "grad_norm" (before clipping).

        With a gradient that is not a number nothing moves: the caller sees it in "grad_norm".
        """
        rate = learning_rate(self.config, step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf).item()
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            if self.average:
                decay = min(self.config.ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.optimizer.zero_grad(set_to_none=True)
        return {"lr": rate, "grad_norm": norm}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with what is to be saved: the moving average where there is one."""
        last = [p.detach().clone() for p in self.parameters]
        try:
            for p, tensor in zip(self.parameters, self.average, strict=False):
                p.data.copy_(tensor)
            yield
        finally:
            for p, tensor in zip(self.parameters, last, strict=True):
                p.data.copy_(tensor)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 1, 2, ..: a linear warm-up from lr / warmup, then constant, linear or cosine down to 0."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    gone = (step - 1 - config.warmup) / max(1, config.steps - config.warmup)
    falls = {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
    return config.lr * falls[config.schedule]
