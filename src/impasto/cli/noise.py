"""`impasto noise <action>`: each action is a function of its flags; ACTIONS is the table of them."""

from collections.abc import Callable
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from impasto.cli.calibrate import calibrate
from impasto.cli.console import last_value, parse
from impasto.config import TrainConfig, change, default_recipe, resolve
from impasto.errors import UserError, nearest
from impasto.interop.settings_file import check_tool, read_values
from impasto.noise import NOISE_LAWS
from impasto.registry import name_of

Result = dict[str, Any]
Architecture = Literal["flux", "sd3", "sdxl", "sd15"]


def show(args: list[str]) -> Result:
    """A noise law as a histogram in log-SNR and sigma, with the band in which style emerges."""
    extra = {
        "calibration": (
            Annotated[
                Path | None,
                tyro.conf.arg(
                    help="calibration.json of `impasto noise calibrate`; by default that in runs/calibration/<base>, "
                    "where there is one."
                ),
            ],
            None,
        ),
        "out": (Annotated[Path | None, tyro.conf.arg(help="Plot it too: an SVG.")], None),
    }
    flags, config = parse_law(args, "noise show", show.__doc__ or "", extra)
    from impasto.calibration.show import show as show_law
    from impasto.calibration.show import text

    result = show_law(config, flags.calibration, flags.out)
    print(text(result))
    return result


def import_(args: list[str]) -> Result:
    """Another tool's noise settings in our terms, sign and shift put right."""

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
        check_tool(tool)
        read_values(settings)
        from impasto.interop.noise import format_import, import_settings, write_recipe

        result = import_settings(tool, settings, architecture, size)
        if out is not None:
            write_recipe(result, out)
        print(format_import(result))
        return result

    return parse(import_, args, "noise import")


def export(args: list[str]) -> Result:
    """A noise law as another tool's settings."""
    from impasto.config import read_recipe

    tool = Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help="kohya, ai-toolkit, onetrainer, simpletuner or diffusers.")
    ]
    trained = Annotated[
        Architecture | None,
        tyro.conf.arg(help="What is trained with it, where the base does not state it: some tools differ."),
    ]
    doc = "A noise law as another tool's settings; what that tool cannot do is refused."
    flags, config = parse_law(args, "noise export", doc, {"tool": (tool, ""), "architecture": (trained, None)})
    check_tool(flags.tool)
    from impasto.interop.noise import architecture_of, export_settings, format_export

    base = flags.base or read_recipe(flags.recipe or TrainConfig.recipe).get("base")
    if base is None and flags.size is None:
        config = change(config, size=1024)  # as in `import`, not mini-sd3's
    result = export_settings(flags.tool, config, architecture_of(base, flags.architecture))
    print(format_export(result))
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


BASE = Annotated[
    str | None,
    tyro.conf.arg(
        help="Base model, for its schedule, size and recipe: an embedded one, a diffusers folder, or a hub id (not "
        "fetched); the recipe's own when not given, else mini-sd3."
    ),
]
RECIPE = Annotated[
    str | None,
    tyro.conf.arg(help="A recipe by name, or a TOML file; the base's own when not given, without one style-friendly."),
]
SIZE = Annotated[int | None, tyro.conf.arg(help="Pixels, square; the base's own when not given.")]


def law_config(recipe: str | None = None, base: str | None = None, **keys: Any) -> TrainConfig:
    """The settings of a recipe: the base's own by default, without a base style-friendly."""
    return resolve(recipe or (default_recipe(base) if base else TrainConfig.recipe), base, **keys)


def parse_law(args: list[str], command: str, doc: str, extra: dict[str, tuple[Any, Any]]) -> tuple[Any, TrainConfig]:
    """(the flags of a command, the config that `train` would make of those of the noise law). Raises UserError."""
    from impasto.cli.settings import translate_flags

    args = translate_flags(args)
    base, recipe, noise = (last_value(args, name) for name in ("base", "recipe", "noise"))
    config = law_config(recipe, base, **({} if noise is None else {"noise": noise}))
    law = Annotated[str, tyro.conf.arg(name="noise", help=f"Noise law: {', '.join(NOISE_LAWS)}.")]
    fields = {"base": (BASE, None), "recipe": (RECIPE, None), "size": (SIZE, None), **extra}
    fields["noise_name"] = (law, name_of(NOISE_LAWS, config.noise))
    fields["noise"] = (type(config.noise), config.noise)
    own = [(name, kind, field(default=default)) for name, (kind, default) in fields.items()]
    command_class = make_dataclass("Command", own, frozen=True, kw_only=True)
    command_class.__doc__ = doc
    flags = parse(command_class, args, command)
    return flags, change(config, noise=flags.noise, **({} if flags.size is None else {"size": flags.size}))
