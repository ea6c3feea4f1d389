"""The leak of a scene's things into a folder of images (`leakage.scene_leak`), for `evaluate` and its report.

The reference's things are given, or those of the style folder's concepts.json; of each image those count that its
prompt does not name. The base's images are paired by prompt and seed; without them only shares are known.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from impasto.data.concepts import FILE, read_concepts, split_list
from impasto.errors import UserError
from impasto.evaluation.labels import Labels, words
from impasto.evaluation.leakage import SceneLeak, describe_leak, place_log_odds, scene_leak
from impasto.evaluation.samples import Sample
from impasto.judges.model import Judges

FEWEST = 2
"""Things that make a reference a scene."""


def find_things(given: str | None, run: Path | None, labels: Labels) -> tuple[list[int], list[str]]:
    """(concepts of a scene, notes): the labels in `given`, else the things of a style folder that the judge knows; none
    for a reference that is no scene. Raises UserError on an unknown label in `given`."""
    if given is not None:
        names = [name for name in split_list(given) if name]
        if not names:
            raise UserError("no thing in --reference-things: name them, as in 'teapot; lion'")
        return list(dict.fromkeys(map(labels.named, names))), []
    if run is None or not (run / FILE).is_file():
        return [], []
    things = [concept.phrase for concept in read_concepts(run / FILE).concepts if concept.kind == "thing"]
    if len(things) < FEWEST:
        return [], []
    known = {thing: labels.ids.get(words(thing)) for thing in things}
    unknown = [thing for thing, concept in known.items() if concept is None]
    notes = [f"the judge has no concept {', '.join(map(repr, unknown))}: its leak is not measured"] if unknown else []
    return list(dict.fromkeys(concept for concept in known.values() if concept is not None)), notes


def named_in(prompt: str | None, things: Sequence[int], labels: Labels) -> set[int]:
    """Those of the things whose label stands in a prompt. A label within that of another thing in it does not count:
    "teapot lid" names no teapot where it is a thing itself."""
    text, found = f" {' '.join(words(prompt or ''))} ", set()
    for thing in sorted(things, key=lambda one: -len(labels.names[one])):
        own = re.escape(" ".join(words(labels.names[thing])))
        text, times = re.subn(rf"(?<=\s){own}(?=\s)", "", text)
        found |= {thing} if times else set()
    return found


def measure_scene_leak(
    samples: Sequence[Sample],
    base: Sequence[Sample],
    found: tuple[Sequence[int], Sequence[str]],
    judges: Judges | None,
    labels: Labels,
) -> tuple[dict[str, Any] | None, list[str]]:
    """(result for scores.json, notes). found: of `find_things`. judges: None where the concept judge does not know such
    images; the result is None then, and for a reference that is no scene."""
    things, notes = found[0], list(found[1])
    if not things or judges is None:
        return None, notes
    asked = [named_in(sample.prompt, things, labels) for sample in samples]
    partners = pair_by_seed(samples, base)
    if base and partners is None:
        notes.append("the base's images do not have the same prompts and seeds: leaks are shares, without log-odds")
    base_odds = None if partners is None else place_log_odds(judges, [one.image for one in partners])
    odds = place_log_odds(judges, [one.image for one in samples])
    leak = scene_leak(odds, base_odds, things, asked, judges.concept_threshold)
    return (None if leak is None else describe(leak, labels)), notes


def describe(leak: SceneLeak, labels: Labels) -> dict[str, Any]:
    """JSON: "log_odds" and "standard_error", "images", "things" ({label: its own}) and "text", one line."""
    things = {
        labels.names[thing]: {
            "images": one.images,
            "shown": one.shown,
            "base_shown": one.base_shown,
            "log_odds": one.log_odds,
        }
        for thing, one in leak.things.items()
    }
    about = {"log_odds": leak.log_odds, "standard_error": leak.standard_error, "images": leak.images}
    return about | {"things": things, "text": describe_leak(leak, labels.names)}


def pair_by_seed(samples: Sequence[Sample], base: Sequence[Sample]) -> list[Sample] | None:
    """The base's image of the prompt and seed of each sample, None unless every sample has one."""
    by_noise = {noise_of(one): one for one in base}
    keys = [noise_of(sample) for sample in samples]
    if not base or any(None in key or key not in by_noise for key in keys):
        return None
    return [by_noise[key] for key in keys]


def noise_of(sample: Sample) -> tuple[Any, Any]:
    """(prompt, seed) of an image, each None where it is not known."""
    return sample.prompt, sample.meta.get("seed")
