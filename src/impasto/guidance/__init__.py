"""Guidance: what changes the predictions, the conditions or the attention of a model while it samples images.

GUIDANCES is the table of those that are asked for by name: flags of `impasto generate`, "guidance" in `style.json`,
`guidances=` of `generate(...)`. A row's builder is `bind(settings, family, sampling, encode) -> Guidance`; it checks
everything that can be wrong (UserError) before images are generated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from impasto.coerce import convert_fields
from impasto.errors import UserError, nearest
from impasto.registry import Entry, name_of

GUIDANCES: dict[str, Entry] = {
    "prompt-switch": Entry(
        "impasto.guidance.config:PromptSwitch",
        "impasto.guidance.prompt_switch:bind",
        "two prompts in one image, switched at a log-SNR",
    ),
    "style-aligned": Entry(
        "impasto.guidance.config:StyleAligned",
        "impasto.guidance.style_aligned:bind",
        "attention shared with a reference image; no training",
    ),
    "style-semantics": Entry(
        "impasto.guidance.config:StyleSemantics",
        "impasto.guidance.style_semantics:bind",
        "style against the base, prompt against a null prompt (FineStyle, StyleDrop)",
    ),
    "two-adapters": Entry(
        "impasto.guidance.config:TwoAdapters",
        "impasto.guidance.two_adapters:bind",
        "a style's and a content's adapter in one image (StyleDrop)",
    ),
}


def bind_all(settings: Sequence[Any], family: Any, sampling: Any, encode: Any) -> list[Any]:
    """The guidances of these settings, one of each kind, on a base. Raises UserError."""
    return [GUIDANCES[name_of(GUIDANCES, one)].builder(one, family, sampling, encode) for one in settings]


def given(sections: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of settings by name of GUIDANCES those that ask for something: that are not the default."""
    return tuple(section for section in sections.values() if section != type(section)())


def merged(settings: Sequence[Any], defaults: Sequence[Any]) -> tuple[Any, ...]:
    """`settings`, their None fields filled from those of the same class in `defaults`, then the other defaults."""
    by_class = {type(one): one for one in defaults}
    filled = []
    for one in settings:
        own = by_class.pop(type(one), one)
        missing = {field.name for field in fields(one) if getattr(one, field.name) is None}
        filled.append(replace(one, **{name: getattr(own, name) for name in missing}))
    return (*filled, *by_class.values())


def read_settings(tables: Any, where: str) -> tuple[Any, ...]:
    """Settings from JSON or TOML, {name of GUIDANCES: {key: value}}. Raises UserError on what is not known."""
    if not isinstance(tables, Mapping):
        raise UserError(f"{where} must be a table, not {tables!r}")
    for name in tables:
        if name not in GUIDANCES:
            raise UserError(f"{where}: unknown guidance {name!r}: {nearest(name, list(GUIDANCES))}")
    return tuple(
        convert_fields(GUIDANCES[name].settings_class, values, f"{where}.{name}") for name, values in tables.items()
    )
