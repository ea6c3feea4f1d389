"""`impasto noise <action>`: each action is a function of its flags; ACTIONS is the table of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from impasto.cli.calibrate import calibrate
from impasto.config import TrainConfig, check_ranges, default_recipe, resolve
from impasto.errors import UserError, nearest

Result = dict[str, Any]
Architecture = Literal["flux", "sd3", "sdxl", "sd15"]


def show(args: list[str]) -> Result:
    """A noise law as a histogram in log-SNR and sigma, with the band in which style emerges."""
    from impasto.calibration.show import show, text
    from impasto.cli.console import parse

    @dataclass(frozen=True)
    class Show(LawFlags):
        """A noise law as a histogram in log-SNR and sigma, with the band in which style emerges."""

        calibration: Path | None = None
        """calibration.json of `impasto noise calibrate`; runs/calibration/<base>/calibration.json where that is."""
        out: Path | None = None
        """Draw it too: an SVG."""

    flags = parse(Show, args, "noise show")
    result = show(flags.config(), flags.calibration, flags.out)
    print(text(result))
    return result


def import_(args: list[str]) -> Result:
    """Another tool's noise settings in our terms, sign and shift put right."""
    from impasto.cli.console import parse

    def import_(
        tool: Annotated[str, tyro.conf.Positional],
        settings: Annotated[tuple[str, ...], tyro.conf.Positional],
        architecture: Architecture | None = None,
        size: int = 1024,
        out: Path | None = None,
    ) -> Result:
        """Another tool's noise settings in our terms, sign and shift put right; what has no counterpart is refused.

        Args:
            tool: kohya, ai-toolkit, onetrainer, simpletuner or diffusers.
            settings: Its settings file (TOML, YAML, JSON, or a script with its command line), or KEY=VALUE ...
            architecture: What is trained, where the settings do not tell: some tools mean another thing for each.
            size: Pixels, for shifts that depend on the resolution.
            out: Write a recipe as well, for `impasto train --recipe`.
        """
        from impasto.interop.noise import import_settings, shown, write_recipe

        result = import_settings(tool, settings, architecture, size)
        if out is not None:
            write_recipe(result, out)
        print(shown(result))
        return result

    return parse(import_, args, "noise import")


def export(args: list[str]) -> Result:
    """A noise law as another tool's settings."""
    from impasto.cli.console import parse
    from impasto.config import TrainConfig, read_recipe
    from impasto.interop.noise import architecture_of, export_settings, lines

    @dataclass(frozen=True)
    class Export(LawFlags):
        """A noise law as another tool's settings; what that tool cannot do is refused."""

        tool: Annotated[str, tyro.conf.Positional] = ""
        """kohya, ai-toolkit, onetrainer, simpletuner or diffusers."""
        base: str | None = None
        """Base model, for its schedule, size and recipe; the recipe's when not given; without any mini-sd3's
        recipe, and 1024 px as in `import`."""
        architecture: Architecture | None = None
        """What is trained with it, where the base does not tell: some tools mean another thing for each."""

    flags = parse(Export, args, "noise export")
    base = flags.base or read_recipe(flags.recipe or TrainConfig.recipe).get("base")
    if base is None:
        flags = replace(flags, size=1024 if flags.size is None else flags.size)
    config = flags.config()
    result = export_settings(flags.tool, config, architecture_of(base, flags.architecture))
    print(lines(result))
    return result


ACTIONS: dict[str, Callable[[list[str]], Result]] = {
    "show": show,
    "calibrate": calibrate,
    "import": import_,
    "export": export,
}


def usage() -> str:
    lines = [f"  {name:<10} {(action.__doc__ or '').splitlines()[0]}" for name, action in ACTIONS.items()]
    return "\n".join(["usage: impasto noise <action> ...", "", *lines])


def action(args: list[str]) -> Result:
    """Run the action that the first argument names. Raises UserError for an unknown one; prints the help for none."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    if args[0] not in ACTIONS:
        raise UserError(f"unknown action {args[0]!r} of noise: {nearest(args[0], list(ACTIONS))}")
    return ACTIONS[args[0]](args[1:])


@dataclass(frozen=True)
class LawFlags:
    """The flags of a noise law, as `impasto train` has them."""

    base: str | None = None
    """Base model, for its schedule, size and recipe: an embedded one, a diffusers folder, or a hub id (not fetched);
    the recipe's own when not given, else mini-sd3."""
    recipe: str | None = None
    """A recipe by name, or a TOML file; the base's own when not given, without a base style-friendly."""
    noise: str | None = None
    """Noise law: style-friendly, sd3, logit-normal, uniform, truncated-normal; the recipe's when not given."""
    noise_mean: float | None = None
    """Its mean: style-friendly and truncated-normal of log-SNR (lower = more noise), logit-normal of logit(t)."""
    noise_std: float | None = None
    """Its standard deviation, in the same unit."""
    noise_shift: float | None = None
    """Time shift, of logit-normal, sd3 and uniform only (higher = more noise)."""
    noise_low: float | None = None
    """Of truncated-normal: its lowest log-SNR."""
    noise_high: float | None = None
    """Its highest."""
    offset_noise: float | None = None
    """Shift every channel of the noise as a whole."""
    size: int | None = None
    """Pixels, square; the base's own when not given."""

    def config(self) -> TrainConfig:
        """What `train` would make of these flags. Raises UserError."""
        from impasto.noise.laws import PARAMETERS

        keys = ("noise", *(f"noise_{name}" for name in PARAMETERS), "offset_noise", "size")
        given = {key: getattr(self, key) for key in keys}
        explicit = {key: value for key, value in given.items() if value is not None}
        recipe = self.recipe or (default_recipe(self.base) if self.base else TrainConfig.recipe)
        return check_ranges(resolve(recipe, self.base, **explicit))
