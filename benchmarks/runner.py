"""Runs one training command in this process and notes when each optimiser step ended, and the peak of memory.

    python benchmarks/runner.py OUT.json [--torchvision DIR] -- impasto train --image ...
    python benchmarks/runner.py OUT.json [--torchvision DIR] -- SCRIPT.py --flag ...

Both sides of a comparison run through this file, so both are timed by the same hook: after `Optimizer.step`, by the
clock (seconds from the start of this file, before torch is imported) and in CPU seconds of the process, which other
work on the machine hardly changes. For a script (the peer), two things are made good that
stand between it and mini-sd3 on a CPU; neither is in the step that is timed:

- torchvision's wheel has no CPU operators: the schemas that its Python files refer to are defined, without kernels;
- the script pads to 77 CLIP tokens, which a tower of 32 positions refuses: it reads as many as its tokeniser says, as
  diffusers' pipeline does. That is to its advantage: fewer tokens.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import resource  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

OPERATOR = re.compile(
    r"""register_(?:meta|fake|autograd)\(\s*["'](?:torchvision::)?(\w+)["']|ops\.torchvision\.(\w+)"""
)


def operators(folder: Path) -> list[str]:
    """Names of the operators that torchvision's own Python files register something for."""
    text = "".join((folder / f"_{kind}_registrations.py").read_text() for kind in ("meta", "autograd")
                   if (folder / f"_{kind}_registrations.py").is_file())  # fmt: skip
    return sorted({a or b for a, b in OPERATOR.findall(text)})


def define_torchvision(where: Path) -> Any:
    """Let `torchvision.transforms` be imported from `where`; returns what must stay alive.

    Schemas take and give one tensor: enough to register against, and none is ever called.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in operators(where / "torchvision"):
        library.define(f"{name}(Tensor x) -> Tensor")
    sys.path.append(str(where))
    return library


def read_at_most_the_tower() -> None:
    """CLIP tokenisers called with a `max_length` above their own use their own."""
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("max_length"):
            kwargs["max_length"] = min(kwargs["max_length"], self.model_max_length)
        return plain(self, *args, **kwargs)

    CLIPTokenizer.__call__ = call  # pyright: ignore[reportAttributeAccessIssue]


def execute(command: list[str], torchvision: Path | None) -> None:
    """The command, in this process. Raises SystemExit when it failed."""
    sys.argv = command
    try:
        if command[0] == "impasto":
            from impasto.cli.main import main

            main()
        else:
            held = define_torchvision(torchvision) if torchvision else None
            read_at_most_the_tower()
            runpy.run_path(command[0], run_name="__main__")
            del held
    except SystemExit as stop:
        if stop.code:
            raise


def peak_memory() -> dict[str, float]:
    """MB: of the whole process (imports and loading with it), and of the device where there is one."""
    import torch

    memory = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        memory["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--torchvision", type=Path, help="folder that pip installed torchvision into")
    parser.add_argument("command", nargs="+")
    o = parser.parse_args()
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    wall: list[float] = []
    cpu: list[float] = []

    def note(*_: Any) -> None:
        wall.append(time.perf_counter() - STARTED)
        cpu.append(time.process_time())

    register_optimizer_step_post_hook(note)
    execute(o.command, o.torchvision)
    result = {"command": o.command, "step_ends": wall, "step_ends_cpu": cpu, "seconds": time.perf_counter() - STARTED}
    result |= peak_memory()
    result |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS")}
    o.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
