"""Write docs/settings.md: a table per settings class of `impasto train` and `impasto generate`.

    python tools/write_settings.py

Names, types, defaults and meanings are read from the dataclasses; ranges are found by constructing them at and beyond
each bound. No torch is imported. `tests/tools/test_write_settings.py` fails where the page is not current.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from impasto.config import AXES, SECTIONS, SHORT, TOP, TrainConfig
from impasto.errors import UserError
from impasto.guidance import GUIDANCES
from impasto.sampling.config import GenerateConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Written by `python tools/write_settings.py` from the settings classes; do not edit.

A setting has a key and a flag: `[adapter] rank = 8` in a recipe, `--adapter.rank 8` on the command line,
`impasto.resolve(**{"adapter.rank": 8})` in Python. Recipes are TOML files with the sections below as tables;
`impasto recipes` lists those of the package, `impasto recipes show NAME` prints one.

A default here is the class's own. A recipe and the card of the base (`src/impasto/bases/cards.toml`) may change it. The
first of these that states a setting counts: flag, card's entry for the recipe, recipe, card, class. `impasto train
--dry-run` shows the values of a run.
"""
TITLES = {
    "data": "Data",
    "method": "Method",
    "noise": "Noise law",
    "objective": "Objective",
    "prior": "Prior preservation",
    "adapter": "Adapter",
    "text": "Text encoders",
    "optim": "Optimisation",
    "execution": "Execution",
    "log": "Checkpoints, previews, logs",
    "evaluate": "Scores while training",
    "sampling": "Sampling of the finished style",
}
CHECKED_LATER = {"noise.std": "> 0", "noise.shift": "> 0", "train.seed": "0 to 2^62"}
"""Ranges that other code checks: the laws in `noise.laws`, `coerce.check_seed`."""
STEP = 1e-9


def bare(kind: Any) -> Any:
    """A field's type without annotations and None; of a union of others the first one."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    return bare(alternatives(kind)[0]) if get_origin(kind) in (Union, UnionType) else kind


def alternatives(kind: Any) -> list[Any]:
    """The types of a union without None."""
    return [one for one in get_args(kind) if one is not NoneType]


def type_name(kind: Any) -> str:
    """The type as a user writes it: "number", "integer or text", "list of paths" ..."""
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(type_name(one) for one in alternatives(kind))
    if get_origin(kind) is tuple:
        return f"list of {type_name(get_args(kind)[0])}s"
    if get_origin(kind) is Literal:
        return "choice"
    names = {bool: "on/off", int: "integer", float: "number", str: "text", Path: "path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def default_of(one: Field[Any]) -> str:
    """The default as a recipe has it; "-" for none."""
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is None or value == () or value == "":
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def accepts(settings: Any, name: str, value: Any) -> bool:
    """Whether the class can be constructed with this value."""
    try:
        settings(**{name: value})
    except UserError:
        return False
    return True


def allowed(settings: Any, name: str, kind: Any, path: str) -> str:
    """The range of a number, the values of a choice, "" where there is no limit."""
    if path in CHECKED_LATER:
        return CHECKED_LATER[path]
    if get_origin(kind) in (Union, UnionType) and len(alternatives(kind)) > 1:
        return ""
    kind = bare(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) is tuple and get_args(kind)[0] is int:
        return "" if accepts(settings, name, (0,)) else ">= 1"
    if kind not in (int, float):
        return ""
    if not accepts(settings, name, kind(1)):
        return ""  # goes with another setting
    low = "" if accepts(settings, name, kind(-1)) else ">= 0" if accepts(settings, name, kind(0)) else "> 0"
    if kind is int:
        return low.replace("> 0", ">= 1")
    for bound in (0.5, 1.0):
        if accepts(settings, name, bound - STEP) and not accepts(settings, name, bound + STEP):
            if accepts(settings, name, bound):
                return f"0 to {bound:g}" if low == ">= 0" else f"{low}, <= {bound:g}"
            return f"{low}, < {bound:g}"
    return low


def meanings(settings: Any) -> dict[str, str]:
    """The docstring below each field, of base classes too, on one line."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if not hasattr(kind, "__dataclass_fields__"):
            continue
        source: Any = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        for one, below in pairwise(source.body):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, str):
                found[one.target.id] = " ".join(text.split())
    return found


def cell(text: str) -> str:
    """Text for a cell of a table: bars escaped, words that Markdown would read as HTML in code font."""
    return re.sub(r"(<[^<> ]+>)", r"`\1`", text).replace("|", "\\|")


def flag_of(section: str, name: str, hint: Any, boolean: bool) -> str:
    """The flag of a setting; "no-" where it can be switched off."""
    own = next((one.name for one in getattr(hint, "__metadata__", ()) if getattr(one, "name", None)), None)
    word = (own or name).replace("_", "-")
    prefix = "" if own or SHORT.get(name) == f"{section}.{name}" or not section else f"{section}."
    return f"`--{prefix}{word}`, `--{prefix}no-{word}`" if boolean else f"`--{prefix}{word}`"


def table(settings: Any, section: str, names: Collection[str] | None = None) -> list[str]:
    """A row for each setting of a class, or for those of these names."""
    hints, texts = get_type_hints(settings, include_extras=True), meanings(settings)
    lines = ["| key | flag | type | default | allowed | meaning |", "|---|---|---|---|---|---|"]
    for one in fields(settings):
        hint = hints[one.name]
        suppressed = any("suppress" in repr(mark).lower() for mark in getattr(hint, "__metadata__", ()))
        if (names is not None and one.name not in names) or suppressed:
            continue
        flag = flag_of(section, one.name, hint, bare(hint) is bool)
        known = section or ("train" if settings is TrainConfig else "generate")
        limit = allowed(settings, one.name, hint, f"{known}.{one.name}")
        row = (f"`{one.name}`", flag, type_name(hint), default_of(one), limit, cell(texts.get(one.name, "")))
        lines.append(f"| {' | '.join(row)} |")
    return lines if len(lines) > 2 else ["No settings of its own."]


def summary(settings: Any) -> str:
    return cell(" ".join(inspect.cleandoc(settings.__doc__).split("\n\n")[0].split()))


def training() -> Iterator[str]:
    """The settings of `impasto train`."""
    yield from ("## impasto train", "", *table(TrainConfig, "", TOP), "")
    for section, title in TITLES.items():
        yield from (f"## {title}", "")
        if section in SECTIONS:
            yield from (
                f"Table `[{section}]`. {summary(SECTIONS[section])}",
                "",
                *table(SECTIONS[section], section),
                "",
            )
            continue
        rows, default, _ = AXES[section]
        yield from (f"Table `[{section}]`; `name`, or `--{section} NAME`, selects one (`{default}` by default).", "")
        for name, entry in rows.items():
            kind = entry.settings_class
            yield from (f"### {section} {name}", "", f"`--{section} {name}`: {cell(entry.about)}.", "")
            parent = next((key for key, row in rows.items() if row.settings_class is kind.__base__), None)
            if parent:
                yield from (f"The keys of [{parent}](#{section}-{parent}), and:", "")
            yield from (*table(kind, section, kind.__annotations__ if parent else None), "")


def sampling() -> Iterator[str]:
    """The settings of `impasto generate`."""
    yield from ("## impasto generate", "", *table(GenerateConfig, ""), "")
    for name, entry in GUIDANCES.items():
        stated = f"""`{{"guidance": {{"{name}": {{...}}}}}}`"""
        yield from (
            f"### guidance {name}",
            "",
            f"{entry.about[0].upper()}{entry.about[1:]}. In `style.json`: {stated}.",
        )
        yield from ("", *table(entry.settings_class, name), "")


def page() -> str:
    """The text of docs/settings.md."""
    return "\n".join([HEAD, *training(), *sampling()]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
