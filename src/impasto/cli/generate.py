"""`impasto generate`."""

from impasto.cli.console import Result, bar, parse


def generate(args: list[str]) -> Result:
    """Draw pictures from prompts, with or without styles."""
    from impasto.sampling.config import GenerateConfig

    config = parse(GenerateConfig, args, "generate")
    from impasto.generate import generate_folder

    with bar("drawing") as progress:
        return generate_folder(config, lambda done, total: progress(done, "", total))
