"""Default sampling settings for styles on a base: the `style` table of its card."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, get_type_hints

from impasto.coerce import convert
from impasto.errors import UserError, nearest

T = TypeVar("T")
STYLE_WORDS = "style words"
"""As a negative or null prompt: the words by which the style's captions name the style."""


@dataclass(frozen=True)
class StyleDefaults:
    """strength: of the adapter. style_guidance, base_guidance: see `guidance.style_guidance.Weights`. guidance,
    sampler, steps: None for the base's own. until: terminal timestep of inversion noise, None for all steps. negative:
    a prompt, or STYLE_WORDS. plain_strength: recommended strength without style guidance (plain diffusers, other
    tools), for the model card."""

    strength: float = 1.0
    style_guidance: float = 0.0
    base_guidance: float = 0.0
    guidance: float | None = None
    negative: str = ""
    plain_strength: float | None = None
    sampler: str | None = None
    steps: int | None = None
    until: float | None = None

    def complete(self, given: T) -> T:
        """`given`, a `Sampling`, with its None values replaced by these."""
        keys = ("guidance", "style_guidance", "base_guidance", "negative", "sampler", "steps", "until")
        values = {key: getattr(self, key) for key in keys}
        missing = {key: value for key, value in values.items() if getattr(given, key) is None}
        return replace(given, **missing)  # pyright: ignore[reportArgumentType]


PLAIN = StyleDefaults()
"""The defaults of plain diffusers."""
RENAMED_RECIPES = {"keep-content": "prior-preservation"}
"""Earlier names of recipes, which flags and style folders may still have."""


def current_recipe(name: str) -> str:
    """The present name of a recipe."""
    return RENAMED_RECIPES.get(name, name)


def of_card(card: Mapping[str, Any], recipe: str | None = None, where: str = "the base's card: style") -> StyleDefaults:
    """The defaults in a base's card, updated by those for `recipe`. where: names the table in messages."""
    own = dict(card.get("style", {}))
    of_recipe = own.pop("recipes", {}).get(current_recipe(recipe or ""), {})
    return replace(replace(PLAIN, **checked(own, where)), **checked(of_recipe, f"{where}.recipes.{recipe}"))


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` converted to the types of StyleDefaults. Raises UserError on an unknown key or a wrong type."""
    types = get_type_hints(StyleDefaults)
    known = [field.name for field in fields(StyleDefaults)]
    for key in values:
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, known)}")
    return {key: convert(value, types[key], f"{where}.{key}") for key, value in values.items()}
