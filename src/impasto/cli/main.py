"""`impasto <command>`: each command is a few lines over one public function, imported when it is asked for.

With `--json` the last line of stdout is one JSON object and everything else goes to stderr. Exit codes: 0 done, 1 done
but for some cells of `reproduce` (named), 2 bad input (one line on stderr says what), 130 interrupted.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout

from impasto import __version__, quiet_imports
from impasto.cli.adapters import adapters, show_adapters
from impasto.cli.compare import compare, show_comparison
from impasto.cli.concepts import concepts, show_concepts
from impasto.cli.console import (
    Result,
    flag,
    is_main_process,
    plain,
    show,
    show_scores,
    show_sheet,
    show_training,
    show_verdicts,
    warn,
)
from impasto.cli.evaluate import evaluate, report
from impasto.cli.generate import generate
from impasto.cli.invert import invert
from impasto.cli.prompts import prompts, show_prompts
from impasto.cli.research import artworld, demo, pretrain, reproduce
from impasto.cli.studio import studio
from impasto.cli.styles import export, import_, merge, resize
from impasto.cli.train import distill, mix, recipes, select, sheet, train
from impasto.cli.votes import show_votes, votes
from impasto.cli.weights import show_weights, weights
from impasto.errors import UserError, nearest


def noise(args: list[str]) -> Result:
    """Noise laws: show one, take one over from another tool, or find one for a base."""
    from impasto.cli.noise import action

    return action(args)


GROUPS: dict[str, tuple[Callable[[list[str]], Result], ...]] = {
    "Train a style": (train, select, mix, distill, concepts, recipes),
    "Use it": (studio, generate, sheet, invert),
    "Measure it": (evaluate, report, compare, votes, prompts, demo),
    "Files": (export, import_, merge, resize, weights),
    "Noise and adapters": (noise, adapters),
    "Research": (reproduce, artworld, pretrain),
}
COMMANDS = {command.__name__.strip("_"): command for group in GROUPS.values() for command in group}


END = """impasto <command> --help shows the flags of a command. With --json every command
prints its result as one JSON object, on the last line of standard output."""


SHOW: dict[str, Callable[[Result], None]] = {
    "adapters": show_adapters,
    "evaluate": show_scores,
    "concepts": show_concepts,
    "compare": show_comparison,
    "demo": lambda result: None,
    "noise": lambda result: None,
    "recipes": lambda result: None,
    "reproduce": show_verdicts,
    "studio": lambda result: None,
    "sheet": show_sheet,
    "train": show_training,
    "distill": show_training,
    "weights": show_weights,
    "prompts": show_prompts,
    "votes": show_votes,
}
"""How a command's result is shown, where `show` would not do; the demo and the actions of noise show themselves."""


def usage() -> str:
    lines = [f"impasto {__version__}: one picture becomes a style", "", "usage: impasto <command> [--json] ...", ""]
    for group, commands in GROUPS.items():
        names = {command.__name__.strip("_"): (command.__doc__ or "").splitlines()[0] for command in commands}
        lines += [group, *(f"  {name:<10} {does}" for name, does in names.items()), ""]
    return "\n".join([*lines, END])


def run(args: list[str], as_json: bool) -> Result | None:
    """The command's result; None when only help was asked for."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return None
    if args[0] == "--version":
        print(f"impasto {__version__}")
        return None
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}: {nearest(args[0], list(COMMANDS))}")
    if not as_json:
        return COMMANDS[args[0]](args[1:])
    with redirect_stdout(sys.stderr):
        return COMMANDS[args[0]](args[1:])


def check_arguments(args: list[str]) -> None:
    """Raise UserError where one is no UTF-8: it could be written neither into a file's texts nor as JSON."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise UserError(f"{arg!r} is no UTF-8: write, or rename, it as such") from None


def main() -> None:
    """The entry point of the command `impasto`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    quiet_imports()
    warnings.showwarning = warn
    as_json, args = flag(sys.argv[1:], "--json")
    try:
        check_arguments(args)
        result = run(args, as_json)
    except UserError as error:
        print(f"impasto: error: {error}", file=sys.stderr)
        result, code = {"error": str(error)}, 2
    except SystemExit as stop:  # tyro has said what is wrong with the flags, or shown their help
        result, code = {"error": "bad flags, see stderr"} if stop.code else None, int(stop.code or 0)
    except KeyboardInterrupt as stop:
        print(f"impasto: interrupted: {stop}" if str(stop) else "impasto: interrupted", file=sys.stderr)
        result, code = {"error": "interrupted"}, 130
    except BrokenPipeError:
        if not {"-h", "--help"} & set(args):
            raise
        result, code = None, 1  # tyro was showing its help
    except Exception as error:
        from impasto.failures import explain_failure

        if (message := explain_failure(error)) is None:
            raise
        print(f"impasto: error: {message}", file=sys.stderr)
        result, code = {"error": message}, 2
    else:
        code = 1 if result and result.get("failed") else 0
    try:
        if result is not None and as_json and is_main_process():
            print(json.dumps(plain(result), allow_nan=False))
        elif result is not None and code in (0, 1) and is_main_process():
            SHOW.get(args[0], show)(result)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it has seen enough, as `head` has; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
    sys.exit(code)


if __name__ == "__main__":
    main()
