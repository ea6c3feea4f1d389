"""Several processes, one run: each takes its share of the same draws, and their gradients are averaged once per step.

With W processes and a batch of n, forward pass m of process r takes the draws n (W m + r) on: those that one process
with a batch of W n would take there (the prior's pictures, see `objectives.prior`, are per process). Only the
adapter's gradients are exchanged, in one piece, after the last backward pass; the frozen base is on every device (or
sharded, see docs/training.md). `accelerate launch` says who is who.
"""

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from impasto.execution.apply import repeated

PATIENCE = timedelta(hours=6)
"""For which processes wait for the first one, which downloads the base and draws the previews; NCCL has 10 minutes."""


class Workers:
    """The processes of this run, through accelerate; alone it does nothing. device: as in the config."""

    def __init__(self, device: str) -> None:
        from accelerate import PartialState

        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        self.state = PartialState(cpu=cpu, timeout=PATIENCE)
        self.index, self.size = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process
        self.shards = self.size > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")

    def shard(self, model: Any, adapter: Mapping[str, nn.Parameter]) -> None:
        """With `accelerate launch --use_fsdp`: every process keeps 1 / W of each block's frozen weights and gathers the
        others' when the block computes (torch's `fully_shard`). The adapter stays whole everywhere.

        `model` lies in main memory: block by block it goes to the device, of which it never takes more than its share
        and one block; what belongs to no block follows last.
        """
        if not self.shards:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(str(self.state.device).split(":")[0], (self.size,))
        for block in repeated(model):
            if any(not p.requires_grad for p in block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=set(adapter.values()))
        device = torch.device(str(self.state.device))
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.device.type != device.type:
                tensor.data = tensor.data.to(device)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every process has the mean of all gradients; a weight without one in one process has none in any."""
        if self.size == 1:
            return
        from accelerate.utils import reduce

        grads = [p.grad for p in parameters if p.grad is not None]
        flat: Any = reduce(torch.cat([g.flatten() for g in grads]), "mean")
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def mean(self, values: list[float]) -> list[float]:
        """The mean over the processes of each value."""
        if self.size == 1:
            return values
        from accelerate.utils import reduce

        result: Any = reduce(torch.tensor(values, dtype=torch.float32, device=self.state.device), "mean")
        return result.tolist()

    def gather(self, values: list[float]) -> list[float]:
        """The values of all processes, in order."""
        if self.size == 1:
            return values
        from accelerate.utils import gather

        result: Any = gather(torch.tensor(values, dtype=torch.float32, device=self.state.device))
        return result.tolist()

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def first_process_first(self) -> Any:
        """A context in which the first process runs before the others."""
        return self.state.main_process_first()

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.state.wait_for_everyone()
