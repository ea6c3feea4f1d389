"""A checkpoint as a style: "runs/x@100" is the style folder of the checkpoint of step 100 of a run, finished or not."""

import re
import shutil
from pathlib import Path

from impasto.adapters.base import adapter_of
from impasto.adapters.text_encoder import build_text
from impasto.bases import loader
from impasto.errors import UserError
from impasto.files import atomic_folder
from impasto.styles.parts import has_weights
from impasto.styles.save import save
from impasto.training.checkpoints import read_adapter, saved_states
from impasto.training.sheet import put, read_run

FOLDER = "checkpoints"
NAMED = re.compile(r"(?P<run>.+)@(?P<step>\d+)(?P<strength>:[^:]*)?")


def checkpoint_style(run: Path | str, step: int) -> Path:
    """The style folder `run/checkpoints/step-000100` of a checkpoint, written when it is not there; the moving average
    where the run has one, as its style will have.

    Args:
        run: The style folder of a run, finished or not.
        step: Of the checkpoint.

    Raises:
        UserError: Where the run has no checkpoint of that step; names those that it has.
    """
    run = Path(run)
    target = run / FOLDER / f"step-{step:06d}"
    if target.is_dir() and has_weights(target):
        return target
    config, _ = read_run(run)
    states = saved_states(run / "state")
    if step not in states:
        known = f"it has those of {', '.join(map(str, states))}" if states else "it has none"
        raise UserError(f"{str(run)!r} has no checkpoint of step {step}: {known} (--keep 0 keeps all while training)")
    family = loader.load(config.base, device="cpu", precision="fp32", components=config.components)
    text, adapter = build_text(config), adapter_of(config.adapter)
    named = text.attach(family) | adapter.attach(family, config.adapter, config.seed)
    put(named, read_adapter(states[step]), f"{run}, step {step}")
    with atomic_folder(target, has_weights) as folder:
        save(family, folder, text, adapter)
        for name in ("recipe.toml", "reference.png"):
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
    return target


def resolve_checkpoint(style: str) -> str:
    """ "runs/x@100:0.8" as the path of its style folder with the strength; any other style as it is."""
    found = NAMED.fullmatch(style)
    if found is None or Path(style).exists():
        return style
    return f"{checkpoint_style(found['run'], int(found['step']))}{found['strength'] or ''}"
