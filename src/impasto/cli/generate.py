"""`impasto generate`."""

from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any

import tyro

from impasto.cli.console import Result, bar, parse

GRID = Annotated[bool, tyro.conf.arg(help="Of a style of two: a sheet of alpha x beta instead of images.")]
SWEEP = Annotated[bool, tyro.conf.arg(help="Of a style with inversion noise: a sheet of terminal timesteps x prompts.")]
LINE = Annotated[bool, tyro.conf.arg(help="Of a style of two: a sheet of alpha = beta from 0 to 1.")]


def command_class() -> Any:
    """GenerateConfig with a section of flags for each row of GUIDANCES."""
    from impasto.guidance import GUIDANCES
    from impasto.sampling.config import GenerateConfig

    sections = [
        ("grid", GRID, field(default=False)),
        ("line", LINE, field(default=False)),
        ("sweep", SWEEP, field(default=False)),
    ]
    for name, entry in GUIDANCES.items():
        settings = entry.settings_class
        sections.append((name.replace("-", "_"), settings, field(default_factory=settings)))
    return make_dataclass("GenerateCommand", sections, bases=(GenerateConfig,), frozen=True)


def generate(args: list[str]) -> Result:
    """Generate images from prompts, with or without styles."""
    from impasto.guidance import GUIDANCES, given
    from impasto.sampling.config import GenerateConfig

    command = parse(command_class(), args, "generate")
    own: dict[str, Any] = {one.name: getattr(command, one.name) for one in fields(GenerateConfig)}
    guidances = given({name: getattr(command, name.replace("-", "_")) for name in GUIDANCES})
    if any("@" in style for style in command.style):
        from impasto.training.checkpoint_style import resolve_checkpoint

        own["style"] = tuple(map(resolve_checkpoint, command.style))
    config = GenerateConfig(**{**own, "guidances": guidances})
    from impasto.generation import generate_folder, mixing_sheets, timestep_sheet

    with bar("generating") as progress:
        if command.grid or command.line:
            return mixing_sheets(config, command.grid, command.line, lambda done, total: progress(done, "", total))
        if command.sweep:
            return timestep_sheet(config, lambda done, total: progress(done, "", total))
        return generate_folder(config, lambda done, total: progress(done, "", total))
