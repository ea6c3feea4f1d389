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
from impasto.guidance import merged, read_settings
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


def stated(path: Path) -> dict[str, Any]:
    """What the `style.json` of a style folder says of sampling and guidance, {} where nothing."""
    found = {"sampling": own_sampling(path), "guidance": own_guidances(path)}
    content = read_style_json(path)
    return {key: content[key] for key, settings in found.items() if settings}


def own_guidances(path: Path) -> tuple[Any, ...]:
    """Settings of the guidances that the `style.json` of a style folder names, see `guidance.GUIDANCES`."""
    return read_settings(read_style_json(path).get("guidance", {}), f"{path / STYLE_JSON}: guidance")


def of_adapter(config: TrainConfig, family: "Family") -> StyleDefaults:
    """The card's, where the adapter has none of its own."""
    return replace(of_card(family.card, config.recipe), **adapter_of(config.adapter).sampling)


def of_run(
    config: TrainConfig, family: "Family", captions: Sequence[str], given: "Sampling"
) -> tuple[float, "Sampling", tuple[Any, ...]]:
    """(strength, `given` completed, settings of guidances that replace its weights) for the style that a run makes from
    these captions in `config.out`, whose `style.json` comes first."""
    defaults = replace(of_adapter(config, family), **own_sampling(config.out))
    guidances = [one for one in with_presets(own_guidances(config.out), family) if replaces_weights([one])]
    if guidances:
        filled = in_place_of_words(guidances, (captions, config.out), family)
        return defaults.strength, without_weights(given, family).on(family), filled
    negative = in_words(defaults.negative, captions, f"style {str(config.out)!r}", family)
    return defaults.strength, replace(defaults, negative=negative).complete(given).on(family), ()


def in_words(negative: str, captions: Sequence[str], whose: str, family: "Family", asked: str = "") -> str:
    """A negative prompt, STYLE_WORDS replaced by the words in these captions.

    Where there are none it is empty, with a warning; UserError where a flag, `asked`, wants them. Empty on a base that
    takes no negative prompt.
    """
    if negative != STYLE_WORDS or (family.guided_by != "negative" and not asked):
        return negative if asked or family.guided_by == "negative" else ""
    if words := style_words(captions):
        return words
    lacks = f"the captions of {whose} do not tell its style words"
    if asked:
        raise UserError(f"{lacks}: write them out, as in {asked} 'ink drawing'")
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


FORMS = {
    r".+?\bin the style of (.+)": "a {thing} in the style of {words}",
    r".+\bin (?:an? |the )?(.+? style\b.*)": "a {thing} in {words}",
    r".+? drawn as (.+)": "a {thing} drawn as {words}",
    r".+?, (.+)": "{thing}, {words}",
}
"""Forms of captions with the style's words as a group, and the prompt of another thing in that form."""
THINGS = ("cat", "house", "bicycle", "guitar", "rose", "key", "umbrella", "car")


def prompts_of_others(captions: Sequence[str], count: int = 4) -> list[str]:
    """Prompts of things that these captions do not name, in their form and with their style words; none where the words
    are not known."""
    if not captions or not (words := style_words(captions)):
        return []
    forms = [form for form in FORMS if re.fullmatch(form, " ".join(captions[0].split()).rstrip(" ."), re.IGNORECASE)]
    named = " ".join(captions).lower()
    things = [thing for thing in THINGS if thing not in named]
    return [FORMS[forms[0]].format(thing=thing, words=words) for thing in things[:count]] if forms else []


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
    guidances: Sequence[Any] | None,
    family: "Family",
    plain: bool = False,
) -> tuple[list[tuple[Path, float]], "Sampling", tuple[Any, ...]]:
    """Styles, sampling and settings of guidances with the styles' defaults where a value is None, or no guidance given.

    abouts: what each style says of itself. Of several styles the one of the largest strength gives style guidance,
    guidance, negative prompt and guidances. guidances: () for none. plain: what no flag gives is as in plain diffusers.
    Warns where styles disagree, and where a negative prompt of style words stays empty by default; raises UserError
    where it was asked for and there are none, and where weights are given beside a guidance that replaces them.
    """
    scale = sampling.guidance
    if guidances is not None:
        guidances = with_presets(guidances, family, scale)
        if any(getattr(one, "preset", None) for one in guidances):  # its weights are those of this scale
            sampling = replace(sampling, guidance=None)
    if not styles:
        found = in_place_of_words(guidances or (), None, family)
        return [], without_weights(sampling, family) if replaces_weights(found) else sampling, found
    found = [
        PLAIN if plain else of_style(path, about, family.card) for (path, _), about in zip(styles, abouts, strict=True)
    ]
    chosen = [
        (path, own.strength if strength is None else strength)
        for (path, strength), own in zip(styles, found, strict=True)
    ]
    first = max(range(len(chosen)), key=lambda i: chosen[i][1])
    (path, _), own = chosen[first], found[first]
    defaults = () if plain else with_presets(own_guidances(path), family, scale)
    chosen_guidances = defaults if guidances is None else merged(guidances, defaults) if guidances else ()
    chosen_guidances = in_place_of_words(chosen_guidances, (abouts[first].captions, path), family)
    if replaces_weights(chosen_guidances):
        return chosen, without_weights(sampling, family), chosen_guidances
    used = own.complete(sampling)
    if len({replace(one, strength=1.0, plain_strength=None) for one in found}) > 1 and used != sampling:
        warnings.warn(f"the styles' defaults differ: those of {str(path)!r}, the strongest, are used", stacklevel=3)
    captions, asked = abouts[first].captions, "" if sampling.negative is None else "--negative"
    used = replace(used, negative=in_words(used.negative or "", captions, f"style {str(path)!r}", family, asked))
    return chosen, used, chosen_guidances


def replaces_weights(guidances: Sequence[Any]) -> bool:
    """Whether one of these settings has weights in place of those of `Sampling`."""
    return any(getattr(one, "replaces_weights", False) for one in guidances)


def with_presets(guidances: Sequence[Any], family: "Family", scale: float | None = None) -> tuple[Any, ...]:
    """Guidances with the weights of their presets. scale: guidance scale; the base's own where it is None, 1 on a base
    that takes no negative prompt."""
    if family.guided_by != "negative":
        scale = 1.0
    own = family.card["generate"]["guidance"] if scale is None else scale
    return tuple(one.resolved(own) if getattr(one, "preset", None) else one for one in guidances)


def without_weights(sampling: "Sampling", family: "Family") -> "Sampling":
    """`sampling` without guidance scale, style guidance, base guidance and negative prompt. Raises UserError where one
    of them is given."""
    scaled = family.guided_by == "negative" and (sampling.guidance or 0.0) > 1
    instead = {
        "guidance": (scaled, f"--lambda2 {(sampling.guidance or 0.0) - 1:g} is the same"),
        "style-guidance": (sampling.style_guidance, "it is --lambda1"),
        "base-guidance": (sampling.base_guidance, "it is --lambda-base"),
        "negative": (sampling.negative, "name the null prompts with --semantics-null and --base-null"),
    }
    for name, (given, what) in instead.items():
        if given:
            raise UserError(
                f"--{name} and the guidance style-semantics of this command or style exclude each other: {what}"
            )
    changes = {"guidance": 1.0} if family.guided_by == "negative" else {}
    return replace(sampling, **changes, style_guidance=0.0, base_guidance=0.0, negative="")


NULL_FLAGS = {"n1": "--base-null", "n2": "--semantics-null"}


def in_place_of_words(
    guidances: Sequence[Any], known: tuple[Sequence[str], Path] | None, family: "Family"
) -> tuple[Any, ...]:
    """Guidances with the style's words where a null prompt is STYLE_WORDS. known: captions and path of the style.
    Raises UserError where there are no such words."""
    found = []
    for one in guidances:
        for name in (name for name in NULL_FLAGS if getattr(one, name, None) == STYLE_WORDS):
            if known is None:
                raise UserError("a null prompt of style words needs a style: give a --style, or write the words out")
            words = in_words(STYLE_WORDS, known[0], f"style {str(known[1])!r}", family, NULL_FLAGS[name])
            one = replace(one, **{name: words})
        found.append(one)
    return tuple(found)
