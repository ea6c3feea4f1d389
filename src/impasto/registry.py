"""Tables of names: a row states which settings class and which function stand behind a name, as texts, so that neither
is imported before the name is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from impasto.errors import UserError, nearest


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        settings: "module:Class" of a frozen dataclass; its module imports no torch where start-up time matters.
        build: "module:function", whose signature the table's own module states.
        about: One line for help texts.
    """

    settings: str
    build: str
    about: str

    @property
    def settings_class(self) -> Any:
        return load(self.settings)

    @property
    def builder(self) -> Any:
        return load(self.build)


Table = Mapping[str, Entry]


def load(path: str) -> Any:
    """The object of "module:name"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def look_up(table: Table, name: str, axis: str) -> Entry:
    """The row of `name`. Raises UserError on an unknown name, the nearest one named."""
    if name not in table:
        raise UserError(f"unknown {axis} {name!r}: {nearest(name, list(table))}")
    return table[name]


def name_of(table: Table, settings: Any) -> str:
    """The name whose settings class is that of `settings`, or the nearest of its base classes."""
    names = {entry.settings: name for name, entry in table.items()}
    for kind in type(settings).__mro__:
        if found := names.get(f"{kind.__module__}:{kind.__qualname__}"):
            return found
    raise TypeError(f"{type(settings).__name__} is in no row of the table")
