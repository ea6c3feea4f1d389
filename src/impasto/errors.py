"""The exception for users' errors."""

from typing import Any


class UserError(Exception):
    """Bad input. The message is one line with cause, value and next step; the CLI prints it and exits with code 2."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'known: a, b, c', preceded by 'did you mean ...?' if there is a close match of `name`; for messages."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def extra(module: str, name: str, purpose: str) -> Any:
    """Import an optional package. Raises UserError with the install command when it is missing."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = "" if isinstance(error, ModuleNotFoundError) and error.name == package else f" ({error})"
        raise UserError(f"{purpose} needs {package}{why}: pip install 'impasto[{name}]'") from None
