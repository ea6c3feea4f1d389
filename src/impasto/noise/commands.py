"""`impasto noise <action>`: each action is a function of its flags; ACTIONS is the table of them."""

from collections.abc import Callable
from typing import Any

from impasto.errors import UserError, nearest
from impasto.noise.calibrate_command import calibrate

Result = dict[str, Any]


ACTIONS: dict[str, Callable[[list[str]], Result]] = {"calibrate": calibrate}


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
