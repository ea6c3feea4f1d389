"""How styles on a base are sampled where neither they nor a flag says: the `style` table of its card."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, get_type_hints

from impasto.coerce import convert
from impasto.errors import UserError, nearest

T = TypeVar("T")
STYLE_WORDS = "style words"
"""As a negative prompt: the words that the style's captions name it by."""


@dataclass(frozen=True)
class StyleDefaults:
    """strength: of the adapter. style_guidance, base_guidance: see `guidance.style_guidance.Weights`. guidance: the
    base's own where it is None. negative: a prompt, or STYLE_WORDS. plain_strength: advised where the style is sampled
    without style guidance, by plain diffusers or another tool; for the model card."""

    strength: float = 1.0
    style_guidance: float = 0.0
    base_guidance: float = 0.0
    guidance: float | None = None
    negative: str = ""
    plain_strength: float | None = None

    def complete(self, given: T) -> T:
        """`given`, a `Sampling`, with these values where its own are None."""
        values = {key: getattr(self, key) for key in ("guidance", "style_guidance", "base_guidance", "negative")}
        missing = {key: value for key, value in values.items() if getattr(given, key) is None}
        return replace(given, **missing)  # pyright: ignore[reportArgumentType]


PLAIN = StyleDefaults()
"""As plain diffusers samples a style."""


def of_card(card: Mapping[str, Any], recipe: str | None = None, where: str = "the base's card: style") -> StyleDefaults:
    """What a base's card says of styles on it, of those by this recipe where it says so."""
    own = dict(card.get("style", {}))
    of_recipe = own.pop("recipes", {}).get(recipe, {})
    return replace(replace(PLAIN, **checked(own, where)), **checked(of_recipe, f"{where}.recipes.{recipe}"))


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` in the types of StyleDefaults. Raises UserError on an unknown key and on another type."""
    types = get_type_hints(StyleDefaults)
    known = [field.name for field in fields(StyleDefaults)]
    for key in values:
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, known)}")
    return {key: convert(value, types[key], f"{where}.{key}") for key, value in values.items()}
