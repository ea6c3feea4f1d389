"""torch.optim.Muon with one Newton-Schulz iteration per shape instead of one per matrix.

The small MM-DiT has 84 matrices in 5 shapes; one after the other they take some 3,000 kernel launches a step, stacked
some 200. The state is the same (`momentum_buffer` per parameter), so checkpoints fit both.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration of matrices [n, a, b] in bfloat16, as `torch.optim.Muon` does it to one."""
    a, b, c = coefficients
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16()
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class StackedMuon(torch.optim.Muon):
    """Muon with `adjust_lr_fn="match_rms_adamw"`: W <- (1 - lr wd) W - .2 lr sqrt(max(a, b)) NS(g + momentum)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, params, grads, buffers)
            if not params:
                continue
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - float(group["lr"]) * group["weight_decay"])
            shapes: dict[torch.Size, list[int]] = defaultdict(list)
            for i, p in enumerate(params):
                shapes[p.shape].append(i)
            for shape, mine in shapes.items():
                stack = torch.stack([updates[i] for i in mine])
                moved = orthogonalize(stack, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
                rate = 0.2 * float(group["lr"]) * max(shape) ** 0.5
                torch._foreach_add_([params[i] for i in mine], list(moved.unbind()), alpha=-rate)
        return loss
