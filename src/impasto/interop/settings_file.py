"""Settings files of other tools, as plain values; needs no torch."""

import json
import shlex
import tomllib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest

TOOLS = {
    "kohya": "impasto.interop.noise.kohya",
    "ai-toolkit": "impasto.interop.noise.ai_toolkit",
    "onetrainer": "impasto.interop.noise.onetrainer",
    "simpletuner": "impasto.interop.noise.simpletuner",
    "diffusers": "impasto.interop.noise.diffusers",
}
"""Tool -> the module that converts its noise settings."""


def check_tool(tool: str) -> None:
    """Raise UserError on an unknown name."""
    if tool not in TOOLS:
        raise UserError(f"unknown tool {tool!r}: {nearest(tool, list(TOOLS))}")


def read_values(settings: Sequence[str]) -> dict[str, list[Any]]:
    """{name: all values} from one file, or from KEY=VALUE words; tables are flattened. Raises UserError."""
    if len(settings) == 1 and "=" not in settings[0]:
        return flatten(read_file(Path(settings[0])))
    pairs = [word.partition("=") for word in settings]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"{key!r} is not KEY=VALUE; a settings file must be the only argument")
    return flatten([{key: value} for key, _, value in pairs])


def last_values(found: Mapping[str, list[Any]], keys: Container[str]) -> dict[str, Any]:
    """The last value of each name. Raises UserError when one of `keys` has several (a law per data set, for
    example)."""
    for key, values in found.items():
        if key in keys and any(value != values[0] for value in values):
            raise UserError(f"{key} is set more than once, to {' and '.join(map(str, values))}: leave one")
    return {key: values[-1] for key, values in found.items()}


def read_file(file: Path) -> Any:
    """TOML, JSON and YAML by suffix; anything else as a command line or lines of KEY=VALUE. Raises UserError."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{str(file)!r} does not exist: give a settings file, or KEY=VALUE ...") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{str(file)!r} cannot be read as text: give a settings file, or KEY=VALUE ...") from None
    try:
        if file.suffix == ".json":
            return json.loads(content)
        if file.suffix == ".toml":
            return tomllib.loads(content)
        if file.suffix in (".yaml", ".yml"):
            return read_yaml(content)
        return command_line(shlex.split(content.replace("\\\n", " "), comments=True))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {str(error).splitlines()[0]}") from None


def read_yaml(content: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def command_line(tokens: Sequence[str]) -> dict[str, Any]:
    """Settings of a command line: `--key value`, `--key=value`, `--flag` and `KEY=VALUE`."""
    found: dict[str, Any] = {}
    for i, token in enumerate(tokens):
        key, equals, value = token.partition("=")
        if equals:
            found[key.removeprefix("export ")] = value
        elif token.startswith("--"):
            following = tokens[i + 1] if i + 1 < len(tokens) else "--"
            found[token] = True if following.startswith("--") else following
    return found


def flatten(content: Any) -> dict[str, list[Any]]:
    """{name: all values, in order} of the leaves of tables and lists; names in lower case, without leading dashes, with
    _ for -. {} for other content, and for a table that is switched off (`enabled`, `disabled`)."""
    found: dict[str, list[Any]] = {}
    if not isinstance(content, Mapping | list):
        return found
    if isinstance(content, Mapping) and (content.get("enabled") is False or content.get("disabled") is True):
        return found
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if name == "optimizer_defaults":  # OneTrainer's, of the optimisers that are not chosen as well
            continue
        if isinstance(value, Mapping | list):
            for key, values in flatten(value).items():
                found.setdefault(key, []).extend(values)
        elif isinstance(name, str):
            found.setdefault(name.lstrip("-").replace("-", "_").lower(), []).append(value)
    return found
