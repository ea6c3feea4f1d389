"""How a style is sampled where no flag says otherwise: strength, sampler, style guidance, guidance, negative.

A weaker adapter, amplified against the base while sampling (`guidance.style_guidance`), has as much of the style as the
full adapter and keeps more of the content (docs/style-guidance.md). The values come, first to last, from the flags,
from `style.json` in the style folder, from the base's card for the style's recipe, from the base's card:

    style.json                                        cards.toml
    {"sampling": {"strength": 0.7,                    [mini-sd15.style]
                  "style_guidance": 2.0,              strength = 0.7
                  "negative": "style words"},         ...
     "guidance": {"prompt-switch": {...}}}
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.adapters.base import adapter_of
from impasto.bases.style_defaults import PLAIN, STYLE_WORDS, StyleDefaults, checked, of_card
from impasto.config import TrainConfig
from impasto.errors import UserError
from impasto.guidance import read_settings
from impasto.styles.metadata import About
from impasto.styles.parts import STYLE_JSON, read_style_json

if TYPE_CHECKING:
    from impasto.families.base import Family
    from impasto.sampling.sample import Sampling


def of_style(path: Path, about: About, card: Mapping[str, Any]) -> StyleDefaults:
    """What its `style.json` says, and the base's card where that is silent. Raises UserError when it is damaged."""
    recipe = about.recipe.get("recipe") or about.metadata.get("impasto.recipe")
    return replace(of_card(card, recipe), **own_sampling(path))


def own_sampling(path: Path) -> dict[str, Any]:
    """What the `style.json` of a style folder says of sampling. Raises UserError when it is damaged."""
    own = read_style_json(path).get("sampling", {})
    if not isinstance(own, dict):
        raise UserError(f"{path / STYLE_JSON}: sampling must be a table, not {own!r}")
    return checked(own, f"{path / STYLE_JSON}: sampling")


def own_guidances(path: Path) -> tuple[Any, ...]:
    """Settings of the guidances that the `style.json` of a style folder names, see `guidance.GUIDANCES`."""
    return read_settings(read_style_json(path).get("guidance", {}), f"{path / STYLE_JSON}: guidance")


def of_adapter(config: TrainConfig, family: "Family") -> StyleDefaults:
    """The card's, where the adapter has none of its own."""
    return replace(of_card(family.card, config.recipe), **adapter_of(config.adapter).sampling)


def of_run(config: TrainConfig, family: "Family", captions: Sequence[str]) -> StyleDefaults:
    """Those of the style that a run makes from these captions, its negative prompt in words."""
    defaults = of_adapter(config, family)
    return replace(defaults, negative=in_words(defaults.negative, captions, f"style {str(config.out)!r}", family))


def in_words(negative: str, captions: Sequence[str], whose: str, family: "Family", asked: bool = False) -> str:
    """A negative prompt, STYLE_WORDS replaced by the words in these captions.

    Where there are none it is empty, with a warning; UserError where it was `asked` for. Empty on a base that takes no
    negative prompt.
    """
    if negative != STYLE_WORDS or (family.guided_by != "negative" and not asked):
        return negative if asked or family.guided_by == "negative" else ""
    if words := style_words(captions):
        return words
    lacks = f"the captions of {whose} do not tell its style words"
    if asked:
        raise UserError(f"{lacks}: write them out, as in --negative 'ink drawing'")
    warnings.warn(f"{lacks}: the negative prompt stays empty; --negative 'ink drawing' sets it", stacklevel=4)
    return ""


def style_words(captions: Sequence[str]) -> str | None:
    """The words that captions name a style by; None where they cannot be told from those of the content.

    "a rocket, flat ink drawing" -> "flat ink drawing"; "a rocket in neon sign style" -> "neon sign style"; "a cat in
    the style of an engraving" -> "an engraving". Several captions have to agree; where they do not, it is the part
    behind a comma that all of them end in.
    """
    found = {words_of(caption) for caption in captions}
    if len(found) == 1:
        return found.pop()
    ends = [[part.strip() for part in caption.rstrip(" .").split(",")][1:] for caption in captions]
    shared: list[str] = []
    for parts in zip(*(reversed(end) for end in ends), strict=False):
        if len(set(parts)) > 1:
            break
        shared.insert(0, parts[0])
    return ", ".join(shared) or None


FORMS = (r".+?\bin the style of (.+)", r".+\bin (?:an? |the )?(.+? style\b.*)", r".+? drawn as (.+)", r".+?, (.+)")


def words_of(caption: str) -> str | None:
    """The style's words in one caption, None where it has no form that tells them."""
    text = " ".join(caption.split()).rstrip(" .")
    for form in FORMS:
        if match := re.fullmatch(form, text, re.IGNORECASE):
            return match[1].strip(" ,") or None
    return None


def apply(
    styles: Sequence[tuple[Path, float | None]],
    abouts: Sequence[About],
    sampling: "Sampling",
    family: "Family",
    plain: bool = False,
) -> tuple[list[tuple[Path, float]], "Sampling", tuple[Any, ...]]:
    """Styles and sampling with the styles' defaults where a value is None, and settings of the style's own guidances.

    abouts: what each style says of itself. Of several styles the one of the largest strength gives style guidance,
    guidance, negative prompt and guidances. plain: what no flag gives is as in plain diffusers. Warns where styles
    disagree, and where a negative prompt of style words stays empty by default; raises UserError where it was asked
    for and there are none.
    """
    if not styles:
        return [], sampling, ()
    found = [
        PLAIN if plain else of_style(path, about, family.card) for (path, _), about in zip(styles, abouts, strict=True)
    ]
    chosen = [
        (path, own.strength if strength is None else strength)
        for (path, strength), own in zip(styles, found, strict=True)
    ]
    first = max(range(len(chosen)), key=lambda i: chosen[i][1])
    (path, _), own = chosen[first], found[first]
    used = own.complete(sampling)
    if len({replace(one, strength=1.0, plain_strength=None) for one in found}) > 1 and used != sampling:
        warnings.warn(f"the styles' defaults differ: those of {str(path)!r}, the strongest, are used", stacklevel=3)
    captions, asked = abouts[first].captions, sampling.negative is not None
    used = replace(used, negative=in_words(used.negative or "", captions, f"style {str(path)!r}", family, asked))
    return chosen, used, () if plain else own_guidances(path)
