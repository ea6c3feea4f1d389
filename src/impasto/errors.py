"""The one exception that users see: a clear line, exit code 2."""


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what to do; the CLI prints it and exits with 2."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'known: a, b, c', preceded by the nearest match of `name` where there is one: for messages."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
