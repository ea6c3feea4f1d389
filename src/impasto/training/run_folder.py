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
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from impasto.config import FREE, TrainConfig, build_config, change, flatten, nest, read_recipe_file, to_paths
from impasto.errors import UserError
from impasto.files import atomic, check_writable, not_a_folder_error, writable_folder
from impasto.styles.weights import WEIGHTS
from impasto.training.checkpoints import read_state, remove, states

OWN = ("recipe.toml", "metrics.jsonl", WEIGHTS, "README.md", "reference.png")
"""What a run writes into its folder, and nobody else shall have there."""


def check_out(config: TrainConfig) -> None:
    """Raise UserError where a run in `config.out` would write over what is not its own, or train on what it drew, and
    where nothing can be written."""
    out = config.out.resolve()
    if any(place.is_file() for place in (out, *out.parents)):
        raise not_a_folder_error(config.out)
    others = [name for name in OWN if (out / name).exists()]
    if others and not holds_run(out):
        raise UserError(
            f"--out {str(config.out)!r} holds {others[0]}, but no run: it would be overwritten; use another --out"
        )
    for image in config.data.image:
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
    earlier: see `earlier_steps`.
    """

    def __init__(self, config: TrainConfig, inputs: Mapping[str, Any], main: bool = True) -> None:
        self.path, self.keep, self.tensorboard = config.out, config.log.keep, config.log.tensorboard
        self.state, self.main, self.metrics, self.board, self.wandb = self.path / "state", main, None, None, None
        self.config, self.lock, self.earlier = config, None, earlier_steps(config)
        if not main:
            return
        recipe = recipe_text(config, {**inputs, **({"earlier_steps": list(self.earlier)} if self.earlier else {})})
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
            self.wandb = self.new_wandb() if self.config.log.wandb else None
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
            return wandb.init(project="impasto", config=flatten(self.config), **about)
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
    """TOML: the settings, so that the file is a recipe itself, and [impasto] for what the run met: `inputs`.

    Raises UserError on text that UTF-8 cannot hold."""
    content = nest(config)
    for key in ("push_to_hub", "hub_private"):  # a recipe used again shall publish nothing
        content["log"].pop(key, None)
    if config.data.concept_file and config.data.concept_file.resolve().parent == config.out.resolve():
        content["data"].pop("concept_file")  # of this image; another one has its own
    tables = {name: table for name, table in content.items() if isinstance(table, dict)} | {"impasto": dict(inputs)}
    lines = [toml_line(key, value) for key, value in content.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(toml_line(key, value) for key, value in table.items())]
    return "\n".join([*lines, ""])


def toml_line(key: str, value: Any) -> str:
    """A key and its value. Raises UserError where UTF-8 cannot hold them: a file name, or half of a character."""
    line = f"{key} = {toml_value(value)}"
    for text in map(str, value if isinstance(value, list) else [value]):
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="replace").decode()
            if key in ("image", "out", "recipe", "base", "components"):
                raise UserError(f"{shown!r} is not UTF-8: rename it") from None
            raise UserError(f"{key}: {shown!r} is not UTF-8 where it has a '?' here: write it again") from None
    return line


def toml_value(value: Any) -> str:
    """As JSON, but for infinite and NaN floats, and for DEL."""
    special = isinstance(value, float) and not math.isfinite(value)
    return str(value) if special else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def holds_run(out: Path) -> bool:
    """Whether the recipe.toml in `out` was written by a run. Raises UserError where the file is damaged."""
    return read_recipe_toml(out) is not None and "[impasto]" in (out / "recipe.toml").read_text(encoding="utf-8")


def previous_recipe(out: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """`read_recipe_toml` of a run in `out` that wrote a checkpoint, else None: before that its settings may be changed.
    Raises UserError where the file is damaged."""
    return read_recipe_toml(out) if [*out.glob("state/*.json"), *out.glob("*.safetensors")] else None


def read_recipe_toml(out: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Settings by flat key, and the table [impasto], of the recipe.toml in `out`; None where there is none. Raises
    UserError where the file is damaged."""
    file = out / "recipe.toml"
    if not file.exists():
        return None
    try:
        return read_recipe_file(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise UserError(f"{file} is damaged: use another --out, or remove that folder") from None


def resume_quantize(config: TrainConfig) -> TrainConfig:
    """On resume, replace `quantize = "auto"` by the value that the first run resolved to: that depends on the memory
    that was free, and it is part of what is learnt."""
    before = previous_recipe(config.out) if config.execution.quantize == "auto" else None
    return change(config, quantize=before[0].get("quantize", "none")) if before else config


def check_recipe(config: TrainConfig, inputs: Mapping[str, Any]) -> None:
    """Raise UserError, the difference shown, when `config.out` holds a run with other settings, or other inputs, as far
    as these are given."""
    before = previous_recipe(config.out)
    if before is None:
        return
    recorded, about = with_defaults(before[0]), before[1]
    now = flatten(config)
    if recorded.get("precision") == "auto":  # a run of an older version, which did not record what it resolved to
        recorded["precision"] = now["precision"]
    keys = sorted(
        (now.keys() | recorded.keys()) - set(FREE) - ({"steps"} if may_add_steps(config, recorded) else set())
    )
    changes = [f"{key}: {recorded.get(key)} -> {now.get(key)}" for key in keys if recorded.get(key) != now.get(key)]
    for key in ("base_sha256", "references_sha256", "data_sha256", "prior_sha256", "init_sha256"):
        if key in inputs and about.get(key) != inputs[key]:
            changes.append(f"{key}: {short(about.get(key))} -> {short(inputs[key])}")
    if "processes" in inputs and about.get("processes", 1) != inputs["processes"]:
        changes.append(f"processes: {about.get('processes', 1)} -> {inputs.get('processes', 1)}")
    if changes:
        if now["steps"] > recorded.get("steps", 0) and now["schedule"] != "constant" and changes[0].startswith("steps"):
            changes[0] += f", for which the {now['schedule']} schedule has to reach step {recorded['steps']} first"
        raise UserError(f"{config.out} holds a run with other settings ({'; '.join(changes)}): use another --out")


def may_add_steps(config: TrainConfig, recorded: Mapping[str, Any]) -> bool:
    """Whether the run in `config.out` goes on to more steps: it has a checkpoint, and where its learning rate falls the
    one of its last step. recorded: its flat settings."""
    saved, steps = states(config.out / "state"), recorded.get("steps", 0)
    done = int(saved[-1].stem.removeprefix("step-")) if saved else 0
    return config.optim.steps > steps and done > 0 and (done == steps or config.optim.schedule == "constant")


def earlier_steps(config: TrainConfig) -> tuple[int, ...]:
    """The numbers of steps that the run in `config.out` had before `config.optim.steps`, where these are more."""
    before = previous_recipe(config.out)
    if before is None:
        return ()
    known, steps = tuple(before[1].get("earlier_steps", ())), with_defaults(before[0]).get("steps", 0)
    return (*known, steps) if steps < config.optim.steps else known


def with_defaults(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The flat settings of a recipe.toml with the defaults of keys that its version did not have yet; as they are where
    this version does not know them all."""
    keys = {"quantize": "none", **recorded}
    try:
        return flatten(build_config(to_paths(keys)))
    except UserError:
        return dict(keys)


def short(value: Any) -> Any:
    """Hashes by their first digits."""
    return [short(item) for item in value] if isinstance(value, list) else str(value)[:12]
