"""The one exception that users see: a clear line, exit code 2."""

from typing import Any


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what to do; the CLI prints it and exits with 2."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'known: a, b, c', preceded by the nearest match of `name` where there is one: for messages."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def extra(module: str, name: str, purpose: str) -> Any:
    """An optional package. Raises UserError, with the command that installs it, when it is not there."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = "" if isinstance(error, ModuleNotFoundError) and error.name == package else f" ({error})"
        raise UserError(f"{purpose} needs {package}{why}: pip install 'impasto[{name}]'") from None
