"""`impasto adapters list` and `impasto adapters count`."""

from collections.abc import Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from impasto.cli.console import Result, last_value, parse
from impasto.errors import UserError, nearest


def adapters(args: list[str]) -> Result:
    """List the adapters, or count their trained parameters on a base."""
    actions = {"list": list_adapters, "count": count}
    if not args or args[0] in ("-h", "--help"):
        print("usage: impasto adapters list | impasto adapters count --adapter styleinject --family sd15 --rank 32")
        return {}
    if args[0] not in actions:
        raise UserError(f"unknown action {args[0]!r} of adapters: {nearest(args[0], list(actions))}")
    return actions[args[0]](args[1:])


def list_adapters(args: list[str]) -> Result:
    """List the adapters, one line each."""

    def show() -> Result:
        """List the adapters, one line each."""
        from impasto.adapters import ADAPTERS

        return {"adapters": {name: entry.about for name, entry in ADAPTERS.items()}}

    return parse(show, args, "adapters list")


def count(args: list[str]) -> Result:
    """Count the trained parameters of an adapter."""
    from impasto.adapters import ADAPTERS
    from impasto.bases.architectures import ARCHITECTURES, family_of
    from impasto.registry import look_up

    args = [arg.replace("--adapter.", "--", 1) if arg.startswith("--adapter.") else arg for arg in args]
    kind = look_up(ADAPTERS, last_value(args, "adapter") or "lora", "adapter").settings_class
    command = parse(command_class(kind, ADAPTERS, ARCHITECTURES), args, "adapters count")
    settings = command.settings
    if (command.family is None) == (command.base is None):
        raise UserError("give one of --family (sd15, for example) and --base")
    if command.family is not None and command.components is not None:
        raise UserError("components are of --base: leave them out with --family")
    family = family_of(command.family) if command.family else base_of(command.base, command.components)
    from impasto.execution.parameters import count_parameters

    place = {"family": command.family} if command.family else {"base": command.base}
    return {"adapter": command.adapter} | place | count_parameters(family, settings)


def command_class(kind: type, names: Sequence[str] | Any, families: Sequence[str] | Any) -> Any:
    """The flags of `count` with those of an adapter's settings class, without a prefix (--rank)."""

    def flag(name: str, of: Any, default: Any, text: str) -> tuple[str, Any, Any]:
        return name, Annotated[of, tyro.conf.arg(help=text)], field(default=default)

    fields = [
        flag("adapter", str, "lora", f"Adapter: {', '.join(names)}"),
        flag("family", str | None, None, f"Architecture in its published size: {', '.join(families)}"),
        flag("base", str | None, None, "A base instead: its configurations are read, its weights are not."),
        flag("components", Path | None, None, "A diffusers folder for what a .safetensors checkpoint does not hold."),
        ("settings", tyro.conf.OmitArgPrefixes[kind], field(default_factory=kind)),
    ]
    command = make_dataclass("CountCommand", fields, frozen=True)
    command.__doc__ = "Count the trained parameters of an adapter on a base, without weights."
    return command


def base_of(base: str, components: Path | None) -> Any:
    """The family of a base from its configurations. Raises UserError where they are not available."""
    from impasto.bases.loader import load_config

    return load_config(base, components, "give --family, or a folder")


def show_adapters(result: Result) -> None:
    """A line for each adapter, or the counts as a table."""
    for name, about in result.get("adapters", {}).items():
        print(f"{name:16} {about}")
    if "parameters" not in result:
        return
    where = result.get("family") or result.get("base")
    print(f"{result['adapter']} on {where}: {result['parameters']:,} parameters, {result['bytes'] / 1e6:,.1f} MB")
    print(f"{result['share']:.3%} of the denoiser's {result['denoiser_parameters']:,}")
    for row in result["groups"]:
        print(f"  {row['part']:26} {row['layer']:20} {row['layers']:4} layers {row['parameters']:14,}")
