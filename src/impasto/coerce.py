"""Conversion of values of TOML, JSON and flags to the types of a settings class."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from impasto.errors import UserError


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` converted to `kind`: int to float, list to tuple, string to path. Raises UserError for other types."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return convert(value, args[0], where)
    if origin in (Union, UnionType):
        return convert(value, next(a for a in args if a is not NoneType), where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(item, args[0], where) for item in value)
    if origin is Literal and value in args:
        return value
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    wanted = f"one of {', '.join(map(str, args))}" if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"{where} must be {'a list' if origin is tuple else wanted}, not {value!r}")


LAST_SEED = 2**62
"""Largest seed of images and runs; derived seeds stay within torch's range."""


def check_seed(seed: int) -> None:
    """Raise UserError unless it is from 0 to LAST_SEED."""
    if not 0 <= seed <= LAST_SEED:
        raise UserError(f"seed must be from 0 to {LAST_SEED}, not {seed}")
