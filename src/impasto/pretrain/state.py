"""Training checkpoints: one safetensors file and one JSON, each written atomically.

Tensors are named `<part>.<name>`; an optimiser's are `<part>.<parameter index>.<key>`. The JSON is written last and
names its tensor file: when the process is killed between the two, the previous checkpoint remains valid.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from impasto.files import atomic


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_state(folder: Path, parts: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write modules and optimisers in `parts`, and `meta` (JSON values), to `folder`."""
    tensors: dict[str, torch.Tensor] = {}
    for part, value in parts.items():
        named = _optimizer_tensors(value) if isinstance(value, torch.optim.Optimizer) else value.state_dict()
        tensors |= {f"{part}.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
    name = f"state-{int(meta['step']):09d}.safetensors"
    with atomic(folder / name) as path:
        save_file(tensors, path)
    with atomic(folder / "state.json") as path:
        path.write_text(json.dumps({**meta, "tensors": name}, indent=1), encoding="utf-8")
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(folder: Path, parts: dict[str, Any], device: str = "cpu") -> dict[str, Any] | None:
    """Restore `parts` in place and return the meta, or None if there is no checkpoint."""
    if not (folder / "state.json").exists():
        return None
    meta = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / meta["tensors"], device=device)
    for part, value in parts.items():
        named = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        if isinstance(value, torch.optim.Optimizer):
            _restore_optimizer(value, named)
        else:
            value.load_state_dict(named)
    return meta


class Clock:
    """The time budget of a resumable run: `progress` in [0, 1] over all its sessions.

    `stop` becomes true on SIGTERM or Ctrl-C, or when `total_minutes` of training are reached; a second Ctrl-C
    interrupts at once. Signal handlers are installed on entry and restored on exit. timer: seconds; time.process_time
    counts CPU time, which on a shared machine measures the work.
    """

    def __init__(self, total_minutes: float, spent: float = 0.0, timer: Callable[[], float] = time.monotonic) -> None:
        self.total, self.spent, self.timer = total_minutes * 60, spent, timer
        self.start = timer()
        self.terminated = False
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> "Clock":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _terminate(self, *_: object) -> None:
        if self.terminated:
            raise KeyboardInterrupt
        self.terminated = True

    @property
    def session(self) -> float:
        return self.timer() - self.start

    @property
    def seconds(self) -> float:
        return self.spent + self.session

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / self.total) if self.total else 1.0

    @property
    def stop(self) -> bool:
        return self.terminated or self.seconds >= self.total


@torch.no_grad()
def ema_update(ema: Iterable[torch.Tensor], live: Iterable[torch.Tensor], decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * live, in place."""
    torch._foreach_lerp_(list(ema), [p.detach() for p in live], 1 - decay)
