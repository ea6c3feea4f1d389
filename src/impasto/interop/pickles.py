"""A pickle (.pt, .pth, .bin, .ckpt) to safetensors: the one way in for weights that are published as pickles.

    python -m impasto.interop.pickles FILE OUT      # what `convert` runs in a process of its own

`torch.load` with `weights_only` builds tensors, containers and NumPy scalars and calls nothing else; the process ends
before its result is used. Of a training checkpoint the state dict is taken (KEYS), without the prefix "module.".
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.files import atomic

KEYS = ("model_state_dict", "state_dict", "model")
PREFIX = "module."
SECONDS = 1800
NOT_TORCH = "it is damaged, or not written by torch.save (TorchScript archives are not read)"


def convert(file: Path | str, out: Path | str | None = None) -> dict[str, Any]:
    """Write the tensors of a pickle to `out`, by default FILE with the suffix .safetensors, atomically.

    Returns {"path", "tensors", "bytes", "left_out": names of what is no tensor}. Raises UserError where the file is
    missing, is no pickle of tensors, or `out` exists.
    """
    file = Path(file)
    target = Path(out) if out is not None else file.with_suffix(".safetensors")
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{str(file)!r} {what}: give a .pt, .pth or .bin file")
    if file.suffix == ".safetensors":
        raise UserError(f"{str(file)!r} is safetensors already: nothing to convert")
    if target.exists():
        raise UserError(f"{str(target)!r} exists and stays: give another OUT, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        command = [sys.executable, "-m", "impasto.interop.pickles", str(file.resolve()), str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            why = (lines or [f"its process ended with code {done.returncode}, out of memory?"])[-1]
            raise UserError(f"{str(file)!r} cannot be converted: {why}")
        found = json.loads(lines[-1])
    return {"path": str(target), "bytes": target.stat().st_size, **found}


def read_tensors(file: Path) -> tuple[dict[str, Any], list[str]]:
    """(tensors by name, names of what is left out). Raises ValueError."""
    import numpy as np
    import torch

    numbers = [np.dtype, *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type))]
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    allowed = [*numbers, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals([*allowed, argparse.Namespace]):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch errors have no common class
            asked = re.search(r"GLOBAL (\S+)", str(error))
            why = f"it calls {asked[1]}, and only tensors and numbers are read" if asked else NOT_TORCH
            raise ValueError(why) from None
    outer: list[str] = []
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            outer = [str(name) for name in content if name != key]
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not named tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"it holds no tensors by name: its keys are {', '.join(list(map(str, content))[:8])}")
    if all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    return tensors, outer + [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]


def main() -> None:
    """Convert FILE to OUT; the last line of stdout is JSON, or says why not (exit code 1)."""
    from safetensors.torch import save_file

    source, target = map(Path, sys.argv[1:])
    try:
        tensors, left_out = read_tensors(source)
    except ValueError as error:
        print(error)
        raise SystemExit(1) from None
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target)
    print(json.dumps({"tensors": len(tensors), "left_out": left_out}))


if __name__ == "__main__":
    main()
