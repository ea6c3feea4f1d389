"""Prompt sets as data: `prompts/NAME.toml`, and the art world's evaluation concepts.

A file has title, source, licence, template ("{content} in {style}") and items: content, with a style phrase where it
belongs to a reference, and a category.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from impasto.errors import UserError, nearest

FOLDER = Path(__file__).parent / "prompts"
CONCEPTS = "evaluation-concepts"


@dataclass(frozen=True)
class Item:
    """content: what to show. style: the style phrase of a reference; None where the style is the user's."""

    content: str
    style: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """template: with {content}, and {style} where it has one."""

    name: str
    title: str
    source: str
    licence: str
    template: str
    items: tuple[Item, ...]

    def texts(self, style: str | None = None) -> list[str]:
        """The prompts in order. style: the phrase for items without their own ("watercolor painting style"); without
        one the content alone."""
        return [self.text(item, item.style or style) for item in self.items]

    def text(self, item: Item, style: str | None) -> str:
        if style is None and "{style}" in self.template:
            return item.content
        return self.template.format(content=item.content, style=style)


def list_prompts() -> list[str]:
    """The names of all sets."""
    return sorted([*(file.stem for file in FOLDER.glob("*.toml")), CONCEPTS])


@cache
def read_prompts(name: str) -> PromptSet:
    """A set by its name. Raises UserError (nearest name) for an unknown one."""
    if name == CONCEPTS:
        return evaluation_concepts()
    if name not in list_prompts():
        raise UserError(f"unknown prompt set {name!r}: {nearest(name, list_prompts())}")
    found = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    items = tuple(Item(**item) for item in found.pop("items"))
    return PromptSet(name, items=items, **found)


def evaluation_concepts() -> PromptSet:
    """The 52 concepts that are held out from the embedded bases, in the order of their ids."""
    from impasto.artworld import load_meta

    meta = load_meta()
    labels = [meta["concepts"][concept]["label"] for concept in meta["split"]["evaluation_concepts"]]
    return PromptSet(
        CONCEPTS,
        "The evaluation concepts of the embedded bases: held out from their training",
        "the art world (impasto.artworld)",
        "Labels of Unicode emoji, see DATA.md",
        "{content} in {style}",
        tuple(map(Item, labels)),
    )


def all_prompts() -> Iterator[PromptSet]:
    """Every set, in the order of `list_prompts`."""
    return map(read_prompts, list_prompts())
