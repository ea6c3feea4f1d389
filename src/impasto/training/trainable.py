"""What moves in training: the adapter's parameters, their optimiser, the moving average that may be saved instead.

    average = d average + (1 - d) p,  d = min(ema, (1 + step) / (10 + step))

All of it is named tensors, so that a state is one safetensors file.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from impasto.optim import optimizers
from impasto.optim.config import OptimConfig

CHECK_AT = 20
"""The step at which it is seen whether all groups of weights move."""


class TrainableParameters:
    """Parameters by name, as they begin. state: the tensors of a state saved after `done` steps, or {}.

    rates: learning rates of parameters whose names begin so, where they are not `config.lr`. earlier: see
    `learning_rate`.
    """

    def __init__(
        self,
        config: OptimConfig,
        named: Mapping[str, nn.Parameter],
        done: int,
        state: Mapping[str, Tensor],
        rates: Mapping[str, float] | None = None,
        earlier: Sequence[int] = (),
    ) -> None:
        self.config, self.named, self.earlier = config, named, earlier
        self.parameters = list(named.values())
        self.optimizer = optimizers.build(config, named, rates or {})
        # at step 1 B is zero and A gets no gradient
        self.check_at = min(CHECK_AT, config.steps) if config.steps > 1 else 0
        self.start = [p.detach().clone() for p in self.parameters] if done < self.check_at else []
        if state:
            self.restore(state)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        for name, tensor in zip(named, self.average, strict=False):
            tensor.copy_(state.get(f"average/{name}", tensor))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, p in self.named.items():
            p.data.copy_(state[f"adapter/{name}"])
        optimizers.restore(self.optimizer, self.named, state)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state but for the number of steps."""
        tensors = {f"adapter/{name}": p.detach() for name, p in self.named.items()}
        tensors |= optimizers.state_tensors(self.optimizer, self.named)
        return tensors | {f"average/{name}": tensor for name, tensor in zip(self.named, self.average, strict=False)}

    def step(self, step: int) -> dict[str, Any]:
        """One update from the gradients, which are cleared; returns the row's "lr" and "grad_norm" (before clipping).

        At step `check_at` also "unchanged", see there. With a gradient that is not a number nothing moves: the caller
        sees it in "grad_norm".
        """
        rate = learning_rate(self.config, step, self.earlier)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf).item()
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            self.optimizer.step()
            if self.average:
                decay = min(self.config.ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.optimizer.zero_grad(set_to_none=True)
        row: dict[str, Any] = {"lr": rate, "grad_norm": norm}
        return row | {"unchanged": self.unchanged(step)} if step == self.check_at and self.start else row

    def finite(self) -> bool:
        """Whether every weight is a number, and none so large that their norm is none: what would be saved."""
        norms: Any = torch._foreach_norm([p.detach() for p in self.parameters])
        return math.isfinite(torch.stack(norms).sum().item())

    def unchanged(self, step: int) -> dict[str, float]:
        """Per group of weights ("to_q.lora_A": that half of all layers so called) the share that is as it began.

        Warns of groups of which most is: their updates are rounded away, or their gradient is zero.
        """
        counts: dict[str, list[int]] = {}
        for (name, p), begun in zip(self.named.items(), self.start, strict=True):
            count = counts.setdefault(group_name(name), [0, 0])
            count[0] += int((p.detach() == begun).sum())
            count[1] += p.numel()
        self.start = []
        shares = {name: round(same / of, 4) for name, (same, of) in sorted(counts.items())}
        stuck = [f"{name} ({share:.0%})" for name, share in shares.items() if share > 0.5]
        if stuck:
            warnings.warn(
                f"after {step} steps most of {', '.join(stuck)} has not moved at all: raise --lr, leave those layers "
                "out of --targets, or see whether the captions reach them",
                stacklevel=2,
            )
        return shares

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


def group_name(name: str) -> str:
    """ "to_out.0.lora_A" for "transformer_blocks.3.attn.to_out.0.lora_A.default.weight"."""
    parts = name.removesuffix(".weight").removesuffix(".default").split(".")
    half = [parts.pop()] if parts[-1].startswith("lora_") else []
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[start:] + half)


def learning_rate(config: OptimConfig, step: int, earlier: Sequence[int] = ()) -> float:
    """The rate of step 1, 2, ..: a linear warm-up from lr / warmup, then constant, linear or cosine down to 0.

    earlier: where a finished run was given more steps, the last steps of before. A falling rate then starts again at
    lr, without a warm-up, and falls over the added steps (warm restarts, Loshchilov & Hutter 2017, arXiv 1608.03983).
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    bounds = [0, *earlier, config.steps]
    last = next((bound for bound in bounds if step <= bound), config.steps)
    first = max((bound for bound in bounds if bound < step), default=0) or config.warmup
    gone = (step - 1 - first) / max(1, last - first)
    falls = {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
    return config.lr * falls[config.schedule]
