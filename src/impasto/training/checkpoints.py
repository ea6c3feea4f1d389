"""Checkpoints: the saved states of a run."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.failures import disk_full, out_of_memory


def states(folder: Path) -> list[Path]:
    """The JSON files of saved states, first to last by their steps: as names, 1,000,000 comes before 999,950."""
    found = {file: re.fullmatch(r"step-(\d+)", file.stem) for file in folder.glob("step-*.json")}
    steps = {file: int(match[1]) for file, match in found.items() if match}
    return sorted(steps, key=steps.__getitem__)


def remove(state: Path) -> None:
    """A saved state, by its JSON: that first, so that what is left of it does not count."""
    state.unlink()
    state.with_suffix(".safetensors").unlink(missing_ok=True)


def read_info(file: Path) -> dict[str, Any] | None:
    """What the JSON of a saved state says, None when that is not all of it."""
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        whole = bool(info["sha256"]) and info["step"] >= 0 and info["metrics_bytes"] >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return info if whole else None


def read_state(file: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(what its JSON says, tensors) of a saved state, None when it is damaged or half there."""
    from safetensors.torch import load

    info = read_info(file)
    try:
        data = file.with_suffix(".safetensors").read_bytes()
    except OSError:
        return None
    return (info, load(data)) if info and hashlib.sha256(data).hexdigest() == info["sha256"] else None


def saved_states(folder: Path) -> dict[int, Path]:
    """The files of all good states' tensors by their steps, first to last."""
    found = {}
    for file in states(folder):
        tensors, info = file.with_suffix(".safetensors"), read_info(file)
        try:
            with tensors.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            continue
        if info and digest == info["sha256"]:
            found[info["step"]] = tensors
    return found


def read_adapter(file: Path) -> dict[str, Any]:
    """What a state's style would be, by the names of its weights: the moving average where there is one. The rest of
    the state, the optimiser's moments most of all, is not read."""
    from safetensors import safe_open

    with safe_open(file, "pt") as state:
        names = list(state.keys())
        own = "average/" if any(name.startswith("average/") for name in names) else "adapter/"
        return {name.removeprefix(own): state.get_tensor(name) for name in names if name.startswith(own)}


@contextmanager
def explain_failures(out: Path, advice: str) -> Iterator[None]:
    """One line, with what to do, for a full disk and for a device out of memory. What was saved before stays."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        if disk_full(error):
            raise UserError(
                f"the disk of {str(out)!r} is full: {describe_last(out)}; make room and give the same command again"
            ) from error
        if out_of_memory(error):
            raise UserError(f"out of memory: {describe_last(out)}; {advice}") from error
        raise


def describe_last(out: Path) -> str:
    """Which state a run goes on from, in words."""
    kept = states(out / "state")
    return (
        f"the checkpoint of step {int(kept[-1].stem.removeprefix('step-'))} is kept"
        if kept
        else "there is no checkpoint yet"
    )
