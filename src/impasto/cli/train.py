"""`impasto train` and `impasto sheet`."""

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from impasto.cli.console import Result, bar, cleared, last_value, parse
from impasto.config import TrainConfig


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a style on one or a few reference pictures."""

    dry_run: bool = False
    """Only say what would be done: settings, noise, device, memory, time; nothing is loaded or written."""

    def config(self) -> TrainConfig:
        """What is trained, without what belongs to the command alone."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})


def train(args: list[str]) -> Result:
    """Train a style on one or a few reference pictures."""
    from impasto.config import recipe_note, resolve

    given = {name: last_value(args, name) for name in ("recipe", "base", "noise", "optimizer")}
    default = resolve(**{name: value for name, value in given.items() if value is not None})
    command = parse(TrainCommand, args, "train", cleared(TrainCommand(**vars(default)), args))
    config = command.config()
    if note := recipe_note(config):
        warnings.warn(note, stacklevel=1)
    if command.dry_run:
        from impasto.training.plan import plan

        return plan(config)
    from impasto.train import train

    with bar("preparing") as preparing, bar("training", config.steps) as progress:
        return train(
            config,
            lambda step, loss: progress(step, f"loss {loss:.3f}"),
            lambda done, total: preparing(done, "", total),
        )


def sheet(args: list[str]) -> Result:
    """The saved states of a run, side by side at several strengths."""

    def sheet(
        run: Annotated[Path, tyro.conf.Positional],
        prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        strength: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        style_guidance: float | None = None,
        negative: str | None = None,
        out: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Result:
        """Draw the same prompts from the same seed by every saved state (train with --keep 0 to keep all of them).

        Args:
            run: The style folder, as `impasto train` writes it.
            prompt: A prompt; may be given several times. The run's own previews' or captions when not given.
            strength: Strengths of the style.
            seed: Of every picture; the run's own when not given.
            steps: Sampling steps; as the base's card says when not given.
            guidance: Guidance scale, as in `impasto generate`.
            style_guidance: Weight of the style against the base, as in `impasto generate`.
            negative: Negative prompt, as in `impasto generate`.
            out: The PNG, its JSON beside it; sheet.png in the folder when not given.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
        """
        from impasto.training.sheet import checkpoint_sheet

        with bar("drawing") as progress:
            return checkpoint_sheet(
                run,
                prompt,
                strength,
                seed=seed,
                steps=steps,
                guidance=guidance,
                style_guidance=style_guidance,
                negative=negative,
                out=out,
                device=device,
                precision=precision,
                progress=lambda done, total: progress(done, "", total),
            )

    return parse(sheet, args, "sheet")
