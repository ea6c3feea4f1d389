"""`impasto generate`."""

from dataclasses import field, fields, make_dataclass
from typing import Any

from impasto.cli.console import Result, bar, parse


def command_class() -> Any:
    """GenerateConfig with a section of flags for each row of GUIDANCES."""
    from impasto.guidance import GUIDANCES
    from impasto.sampling.config import GenerateConfig

    sections = []
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
    from impasto.generation import generate_folder

    with bar("generating") as progress:
        return generate_folder(config, lambda done, total: progress(done, "", total))
