"""`impasto generate`."""

import shlex
from dataclasses import field, fields, make_dataclass, replace
from typing import Annotated, Any

import tyro

from impasto.cli.checks import check_bases, check_images, check_styles
from impasto.cli.console import Result, parse, progress_bar
from impasto.errors import UserError

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
    from impasto.sampling.config import GenerateConfig, parse_size, with_seed
    from impasto.sampling.prompts import check_prompts, read_pasted, read_prompts

    command = parse(command_class(), args, "generate")
    own: dict[str, Any] = {one.name: getattr(command, one.name) for one in fields(GenerateConfig)}
    guidances = given({name: getattr(command, name.replace("-", "_")) for name in GUIDANCES})
    config = with_seed(read_pasted(GenerateConfig(**{**own, "guidances": guidances})))
    parse_size(config.size)
    check_prompts(read_prompts(config, warn=False))  # what generates warns
    if config.count < 1:
        raise UserError(f"count must be at least 1, not {config.count}")
    check_bases(config.base)
    check_styles(config.style, hub=True)
    check_images([image for one in guidances if (image := getattr(one, "image", None))])
    if any("@" in style for style in command.style):
        from impasto.training.checkpoint_style import resolve_checkpoint

        config = replace(config, style=tuple(map(resolve_checkpoint, command.style)))
    from impasto.generation import generate_folder, mixing_sheets, timestep_sheet

    with progress_bar() as progress:
        if command.grid or command.line:
            return mixing_sheets(config, command.grid, command.line, progress)
        if command.sweep:
            return timestep_sheet(config, progress)
        result = generate_folder(config, progress)
    return result | {"next": f"impasto evaluate {shlex.quote(str(config.out))}"}
