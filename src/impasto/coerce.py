"""Conversion of values of TOML, JSON and flags to the types of a settings class."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from impasto.errors import UserError, nearest


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


def convert_fields(settings: Any, values: Any, where: str) -> Any:
    """`settings`, a dataclass, from a table of its fields. Raises UserError on unknown keys and wrong types."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a table, not {values!r}")
    types = get_type_hints(settings, include_extras=False)
    for key in values:
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, list(types))}")
    return settings(**{key: convert(value, types[key], f"{where}: {key}") for key, value in values.items()})


def check_numbers(settings: Any, above_0: Sequence[str] = (), at_least_0: Sequence[str] = (), prefix: str = "") -> None:
    """Raise UserError unless these fields of a dataclass are finite numbers above, or at least, 0; None passes.

    prefix: of the fields' names in messages, "prior." for example."""
    for name in (*above_0, *at_least_0):
        value = getattr(settings, name)
        if value is not None and not (0 < value < math.inf or (value == 0 and name in at_least_0)):
            what = "a finite number " if value == math.inf else ""
            bound = "at least" if name in at_least_0 else "above"
            raise UserError(f"{prefix}{name} must be {what}{bound} 0, not {value}")


def check_share(value: float, name: str) -> None:
    """Raise UserError unless value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be from 0 to 1, not {value:g}")


LAST_SEED = 2**62
"""Largest seed of images and runs; derived seeds stay within torch's range."""


def check_seed(seed: int) -> None:
    """Raise UserError unless it is from 0 to LAST_SEED."""
    if not 0 <= seed <= LAST_SEED:
        raise UserError(f"seed must be from 0 to {LAST_SEED}, not {seed}")
