"""The folder of a run: what was asked for, what was measured, and the states from which it goes on.

    recipe.toml     every setting, versions, hashes of base and references
    metrics.jsonl   one row per optimiser step; tensorboard/ the same for those who like curves
    state/          step-000050.safetensors (adapter, optimiser, average) and, written last, step-000050.json

No pickles anywhere. A state counts when its JSON is there and names the sha256 of its tensors.
"""

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto.config import FREE, TrainConfig, as_dict
from impasto.errors import UserError
from impasto.paths import atomic


class RunFolder:
    """Opens `config.out` for this run. Raises UserError when it cannot be written or holds a run of another recipe.

    inputs: hashes and versions that recipe.toml states under [impasto]; base and references must not change either.
    """

    def __init__(self, config: TrainConfig, inputs: Mapping[str, Any]) -> None:
        self.path, self.keep, self.tensorboard = config.out, config.keep, config.tensorboard
        self.state = self.path / "state"
        writable_folder(self.state, self.path)
        refuse_change(self.path / "recipe.toml", config, inputs)
        with atomic(self.path / "recipe.toml") as file:
            file.write_text(recipe_text(config, inputs))

    def resume(self) -> tuple[int, dict[str, Any]]:
        """The last good state as (step, tensors), (0, {}) when there is none; metrics.jsonl is cut back to it."""
        from safetensors.torch import load

        step, offset, tensors = 0, 0, {}
        for file in sorted(self.state.glob("step-*.json"), reverse=True):
            try:
                info = json.loads(file.read_text())
                data = file.with_suffix(".safetensors").read_bytes()
            except (OSError, ValueError):
                continue
            if hashlib.sha256(data).hexdigest() == info["sha256"]:
                step, offset, tensors = info["step"], info["metrics_bytes"], load(data)
                break
        self.metrics = (self.path / "metrics.jsonl").open("ab")
        self.metrics.truncate(offset)
        self.board = self.new_board(step) if self.tensorboard else None
        return step, tensors

    def new_board(self, step: int) -> Any:
        """A tensorboard writer that takes back what an earlier run wrote after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl, in the file when this returns."""
        self.metrics.write(json.dumps(row).encode() + b"\n")
        self.metrics.flush()
        if self.board:
            for name, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.metrics.close()
        if self.board:
            self.board.close()

    def save(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Write a state: tensors, then the JSON that makes it count; older states beyond `keep` go."""
        from safetensors.torch import save

        os.fsync(self.metrics.fileno())
        data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        file = self.state / f"step-{step:06d}.safetensors"
        info = {"step": step, "metrics_bytes": self.metrics.tell(), "sha256": hashlib.sha256(data).hexdigest()}
        with atomic(file) as temporary:
            temporary.write_bytes(data)
        with atomic(file.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(info))
        for old in sorted(self.state.glob("step-*.json"))[: -self.keep]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]


def writable_folder(folder: Path, asked: Path | None = None) -> None:
    """Make `folder`, and see that files can be made in it. Raises UserError that names what was `asked` for."""
    asked = asked or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {str(asked)!r} is a file, or lies in one: give a folder") from None
    except OSError as error:
        raise UserError(f"--out {str(asked)!r} cannot be written: {error.strerror}") from None


def recipe_text(config: TrainConfig, inputs: Mapping[str, Any]) -> str:
    """TOML: the settings at the top, so that the file is a recipe itself, and [impasto] for what they met."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in as_dict(config).items()]
    about = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in inputs.items()]
    return "\n".join([*lines, "", "[impasto]", *about, ""])


def refuse_change(file: Path, config: TrainConfig, inputs: Mapping[str, Any]) -> None:
    """Raise UserError, the difference shown, when `file` belongs to a run with other settings or inputs.

    A run that never came to a saved state binds nobody: what stopped it may be what is being changed.
    """
    saved = [*file.parent.glob("state/*.json"), *file.parent.glob("*.safetensors")]
    if not file.exists() or not saved:
        return
    try:
        before = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError:
        raise UserError(f"{file} is damaged: use another --out, or remove that folder") from None
    about = before.pop("impasto", {})
    before, now = as_dict(TrainConfig()) | before, as_dict(config)  # a key that is newer than the run has its default
    keys = sorted((now.keys() | before.keys()) - set(FREE))
    changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    for key in ("base_sha256", "references_sha256"):
        if about.get(key) != inputs[key]:
            changes.append(f"{key}: {short(about.get(key))} -> {short(inputs[key])}")
    if changes:
        raise UserError(f"{file.parent} holds a run with other settings ({'; '.join(changes)}): use another --out")


def short(value: Any) -> Any:
    """Hashes by their first digits."""
    return [short(item) for item in value] if isinstance(value, list) else str(value)[:12]
