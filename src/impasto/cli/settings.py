"""The settings of a training run as flags: the common ones, and those of the selected classes.

A first pass reads the selectors (--recipe, --base, --noise, --objective, ...), the second parses all flags with the
classes that they select. `data`, `optim`, `execution` and `log` keep short names (--lr), the other sections have a
prefix (--adapter.rank). Flags of earlier versions are translated, see `translate_flags`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Annotated, Any

import tyro

from impasto.bases.style_defaults import RENAMED_RECIPES, current_recipe
from impasto.cli.console import last_value, parse
from impasto.config import ALIASES, AXES, PREFIXED, SECTIONS, TOP, TrainConfig, change, resolve
from impasto.registry import name_of

SELECTORS = ("recipe", "base", *AXES, "optimizer")
REPEATABLE = ("image", "caption", "repeats", "prior.prompt", "prior.image", "preview_prompt", "evaluate.prompt")
SILENT = (
    *("adapter.rank", "adapter.alpha", "adapter.targets", "text.rows"),
    *("method.concepts", "method.boxes", "method.finder", "method.style_words"),
    *("method.select", "method.include_reference", "method.rounds"),
)
"""Whose short names (--rank) stay."""


def translate_flags(args: Sequence[str]) -> list[str]:
    """The arguments with flags and recipes of earlier versions under their present names; a line on stderr names
    those."""
    result, renamed = [], {}
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        recipe = value if flag == "--recipe" else arg if i and args[i - 1] == "--recipe" else ""
        if recipe in RENAMED_RECIPES:
            renamed[f"--recipe {recipe}"] = f"--recipe {current_recipe(recipe)}"
            result.append(arg.removesuffix(recipe) + current_recipe(recipe))
            continue
        key = flag.removeprefix("--").replace("-", "_")
        if flag in ("--text-encoder-lora", "--no-text-encoder-lora"):
            new = f"--text={'frozen' if flag.startswith('--no') else 'lora'}"
            renamed[flag] = new.replace("=", " ")
            result.append(new)
            continue
        path = ALIASES.get(key, "") if flag.startswith("--") else ""
        if path and not path.endswith(".name") and flag != f"--{path}":
            if path not in SILENT:
                renamed[flag] = f"--{path}"
            arg = f"--{path}{equals}{value}"
        result.append(arg)
    if renamed:
        names = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        print(f"impasto: note: {names}", file=sys.stderr)
    return result


def resolve_selected(args: Sequence[str]) -> TrainConfig:
    """The first pass: recipe, base and classes as the flags select them. Raises UserError on an unknown name."""
    given = {name: value for name in SELECTORS if (value := last_value(args, name)) is not None}
    return resolve(**given)


def clear_repeatable(config: TrainConfig, args: Sequence[str]) -> TrainConfig:
    """Without the lists that flags give again: flags replace a recipe's list, they do not add to it."""
    given = [key for key in REPEATABLE if last_value(args, key.replace("_", "-")) is not None]
    return change(config, **dict.fromkeys(given, ()))


def fields_of(config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """The fields of a command's class, the config's values as defaults."""
    types = TrainConfig.__dataclass_fields__
    found = [(name, types[name].type, field(default=getattr(config, name))) for name in TOP]
    for axis, (table, _, what) in AXES.items():
        section = getattr(config, axis)
        help_text = f"{what[0].upper()}{what[1:]}: {', '.join(table)}"
        selector = Annotated[str, tyro.conf.arg(name=axis, help=help_text)]
        found.append((f"{axis}_name", selector, field(default=name_of(table, section))))
        if section.__dataclass_fields__:
            found.append((axis, type(section), field(default=section)))
    for name, settings in SECTIONS.items():
        shown: Any = settings if name in PREFIXED else tyro.conf.OmitArgPrefixes[settings]
        found.append((name, shown, field(default=getattr(config, name))))
    return found


def parse_config(
    args: Sequence[str], command: str, extra: Mapping[str, tuple[Any, Any]] | None = None, doc: str = ""
) -> tuple[TrainConfig, Any]:
    """(config, the parsed command). extra: {field: (annotated type, default)} of flags that the command adds."""
    args = translate_flags(args)
    config = clear_repeatable(resolve_selected(args), args)
    own = [(name, kind, field(default=default)) for name, (kind, default) in (extra or {}).items()]
    kind = make_dataclass("Command", [*own, *fields_of(config)], frozen=True, kw_only=True)
    kind.__doc__ = doc or TrainConfig.__doc__
    parsed = parse(kind, args, command)
    sections = {name: getattr(parsed, name, getattr(config, name)) for name in (*AXES, *SECTIONS)}
    return TrainConfig(**{name: getattr(parsed, name) for name in TOP}, **sections), parsed
