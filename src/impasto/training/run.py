"""The folder of a run: what was asked for, what was measured, and the states from which it goes on.

    recipe.toml     every setting, versions, hashes of base and references
    metrics.jsonl   one row per optimiser step; tensorboard/ the same for those who like curves
    state/          step-000050.safetensors (adapter, optimiser, average) and, written last, step-000050.json

No pickles anywhere. A state counts when its JSON is there and names the sha256 of its tensors. state/.lock is held
while a process trains here.
"""

import hashlib
import json
import math
import os
import re
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from impasto.config import FREE, TrainConfig, as_dict
from impasto.errors import UserError
from impasto.files import atomic, check_writable, not_a_folder_error, writable_folder
from impasto.styles.weights import WEIGHTS
from impasto.training.states import read_state, remove, states

OWN = ("recipe.toml", "metrics.jsonl", WEIGHTS, "README.md", "reference.png")
"""What a run writes into its folder, and nobody else shall have there."""


def check_out(config: TrainConfig) -> None:
    """Raise UserError where a run in `config.out` would write over what is not its own, or train on what it drew, and
    where nothing can be written."""
    out = config.out.resolve()
    if any(place.is_file() for place in (out, *out.parents)):
        raise not_a_folder_error(config.out)
    others = [name for name in OWN if (out / name).exists()]
    if others and "impasto" not in (read_kept(out) or {}):
        raise UserError(
            f"--out {str(config.out)!r} holds {others[0]}, but no run: it would be overwritten; use another --out"
        )
    for image in config.image:
        place = image.resolve()
        if image.is_dir() and out.is_relative_to(place):
            raise UserError(
                f"--out {str(config.out)!r} lies in --image {str(image)!r}: its previews would be trained on; "
                "use an --out beside that folder"
            )
        drawn = place.is_relative_to(out / "previews")
        if drawn or (place.parent == out and re.fullmatch(r"reference(-\d+)?\.png", place.name)):
            raise UserError(
                f"--image {str(image)!r} is what a run in --out {str(config.out)!r} writes: use another --out"
            )
    check_writable(out / "state", config.out)


class RunFolder:
    """Opens `config.out` for this run. Raises UserError when it cannot be written or holds a run of another recipe.

    inputs: hashes and versions that recipe.toml states under [impasto]; base and references must not change either.
    main: of several processes only the first one writes; the others read the state to go on from, and no more.
    """

    def __init__(self, config: TrainConfig, inputs: Mapping[str, Any], main: bool = True) -> None:
        self.path, self.keep, self.tensorboard = config.out, config.keep, config.tensorboard
        self.state, self.main, self.metrics, self.board, self.wandb = self.path / "state", main, None, None, None
        self.config, self.lock = config, None
        if not main:
            return
        recipe = recipe_text(config, inputs)
        check_recipe(config, inputs)
        writable_folder(self.state, self.path)
        self.lock = FileLock(self.state / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            told = f"another process trains in {str(self.path)!r}: wait for it, or use another --out"
            raise UserError(told) from None
        try:
            for left in self.state.glob(".step-*"):  # of a process that was killed while it saved
                left.unlink()
            with atomic(self.path / "recipe.toml") as file:
                file.write_text(recipe, encoding="utf-8")
        except BaseException:
            self.close()
            raise

    def resume(self) -> tuple[int, dict[str, Any]]:
        """The last good state as (step, tensors), (0, {}) when there is none; metrics.jsonl is cut back to it.

        Warns where metrics.jsonl has lost rows of before, and where states are there but none of them is good.
        """
        step, offset, tensors = 0, 0, {}
        files = states(self.state)
        for file in reversed(files):
            if found := read_state(file):
                step, offset, tensors = found[0]["step"], found[0]["metrics_bytes"], found[1]
                break
        if self.main:
            if files and not tensors:
                names = ", ".join(file.stem for file in files)
                warnings.warn(
                    f"what is saved in {str(self.state)!r} is damaged ({names}): starting afresh", stacklevel=2
                )
            self.metrics = (self.path / "metrics.jsonl").open("ab+")
            if (there := self.metrics.tell()) < offset:
                lost = f"{str(self.path)!r} has lost rows of its metrics.jsonl: the curves of its report have a gap"
                warnings.warn(lost, stacklevel=2)
            self.metrics.seek(0)
            whole = self.metrics.read(min(offset, there)).rfind(b"\n") + 1  # half a row would spoil the next one
            self.metrics.truncate(whole)
            self.board = self.new_board(step) if self.tensorboard else None
            self.wandb = self.new_wandb() if self.config.wandb else None
        return step, tensors

    def new_board(self, step: int) -> Any:
        """A tensorboard writer that takes back what an earlier run wrote after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def new_wandb(self) -> Any:
        """A run of Weights & Biases, one per style folder: what an earlier command logged goes on."""
        from impasto.errors import extra

        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12]
        about = {"dir": str(self.path), "id": name, "name": self.path.name, "resume": "allow"}
        wandb = extra("wandb", "wandb", "--wandb")
        try:
            return wandb.init(project="impasto", config=as_dict(self.config), **about)
        except wandb.Error as error:
            raise no_wandb(str(error)) from None

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl, in the file when this returns."""
        if self.metrics is None:
            return
        self.metrics.write(json.dumps(row).encode() + b"\n")
        self.metrics.flush()
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, row["step"])
        if self.wandb:
            self.wandb.log(values, step=row["step"])

    def close(self) -> None:
        if self.lock:
            self.lock.release()
        if self.metrics:
            self.metrics.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()

    def save(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Write a state: tensors, then the JSON that makes it count; older states beyond `keep` go."""
        if self.metrics is None:
            return
        from safetensors.torch import save

        os.fsync(self.metrics.fileno())
        data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        file = self.state / f"step-{step:06d}.safetensors"
        info = {"step": step, "metrics_bytes": self.metrics.tell(), "sha256": hashlib.sha256(data).hexdigest()}
        with atomic(file) as temporary:
            temporary.write_bytes(data)
        with atomic(file.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(info), encoding="utf-8")
        for old in states(self.state)[: -self.keep] if self.keep else []:
            remove(old)

    def drop(self, step: int) -> None:
        """Take back the state of `step`, if there is one and an older one beside it."""
        files = states(self.state)
        if self.main and len(files) > 1 and files[-1].stem == f"step-{step:06d}":
            remove(files[-1])

    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; `resume` has cut off what is no whole row."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def check_wandb() -> None:
    """Raise UserError where `--wandb` lacks its package or, unless it is offline, a login."""
    from impasto.errors import extra

    wandb = extra("wandb", "wandb", "--wandb")
    if wandb.setup().settings.mode != "online":
        return
    try:
        known = wandb.login(prompt=False, verify=False)
    except TypeError:  # before wandb 0.31 it cannot be asked without a prompt: told when the run is opened
        return
    except wandb.Error as error:
        raise no_wandb(str(error)) from None
    if not known:
        raise no_wandb("no login")


def no_wandb(why: str) -> UserError:
    said = (why.strip() or "no reason given").splitlines()[0].rstrip(".")
    return UserError(f"--wandb cannot be had ({said}): `wandb login`, or WANDB_MODE=offline to keep it here")


def recipe_text(config: TrainConfig, inputs: Mapping[str, Any]) -> str:
    """TOML: the settings at the top, so that the file is a recipe itself, and [impasto] for what they met."""
    config = replace(config, push_to_hub=None, hub_private=False)  # a recipe used again shall publish nothing
    lines = [line(key, value) for key, value in as_dict(config).items()]
    about = [line(key, value) for key, value in inputs.items()]
    return "\n".join([*lines, "", "[impasto]", *about, ""])


def line(key: str, value: Any) -> str:
    """A key and its value. Raises UserError where they cannot be written: a file name that is no UTF-8, or a caption
    with half of a character."""
    told = f"{key} = {toml(value)}"
    for text in map(str, value if isinstance(value, list) else [value]):
        try:
            text.encode()
        except UnicodeEncodeError:
            seen = text.encode(errors="replace").decode()
            if key in ("image", "out", "recipe", "base", "components"):
                raise UserError(f"{seen!r} is no UTF-8: give it another name") from None
            raise UserError(f"{key}: {seen!r} is no UTF-8, where it has a '?' here: write it anew") from None
    return told


def toml(value: Any) -> str:
    """A value as TOML has it: as JSON, but for floats that are no numbers or infinite, and for DEL."""
    endless = isinstance(value, float) and not math.isfinite(value)
    return str(value) if endless else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def earlier(out: Path) -> dict[str, Any] | None:
    """What recipe.toml says of a run in `out` that came to a saved state, else None: such a run binds nobody, as what
    stopped it may be what is being changed. Raises UserError where the file is damaged."""
    return read_kept(out) if [*out.glob("state/*.json"), *out.glob("*.safetensors")] else None


def read_kept(out: Path) -> dict[str, Any] | None:
    """What recipe.toml in `out` says, None where there is none. Raises UserError where the file is damaged."""
    file = out / "recipe.toml"
    if not file.exists():
        return None
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UserError(f"{file} is damaged: use another --out, or remove that folder") from None


def going_on(config: TrainConfig) -> TrainConfig:
    """The config with the run's own `quantize` where a run in `config.out` is gone on with and that is "auto": what it
    came to depends on the memory that was free, and it is part of what is learnt."""
    before = earlier(config.out) if config.quantize == "auto" else None
    return replace(config, quantize=before.get("quantize", "none")) if before else config


def check_recipe(config: TrainConfig, inputs: Mapping[str, Any]) -> None:
    """Raise UserError, the difference shown, when `config.out` holds a run with other settings, or other inputs, as far
    as these are given."""
    before = earlier(config.out)
    if before is None:
        return
    about = before.pop("impasto", {})
    older = as_dict(TrainConfig(quantize="none"))  # what a run did whose recipe does not know a key yet
    before, now = older | before, as_dict(config)
    if before["precision"] == "auto":  # an older run's: what it came to was not kept
        before["precision"] = now["precision"]
    keys = sorted((now.keys() | before.keys()) - set(FREE))
    changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    for key in ("base_sha256", "references_sha256", "data_sha256"):
        if key in inputs and about.get(key) != inputs[key]:
            changes.append(f"{key}: {short(about.get(key))} -> {short(inputs[key])}")
    if "processes" in inputs and about.get("processes", 1) != inputs["processes"]:
        changes.append(f"processes: {about.get('processes', 1)} -> {inputs.get('processes', 1)}")
    if changes:
        raise UserError(f"{config.out} holds a run with other settings ({'; '.join(changes)}): use another --out")


def short(value: Any) -> Any:
    """Hashes by their first digits."""
    return [short(item) for item in value] if isinstance(value, list) else str(value)[:12]
