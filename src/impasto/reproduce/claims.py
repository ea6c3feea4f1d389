"""Claims, and the rule by which verdicts follow from cells.

    claim     one sentence of a paper with the paper's own numbers, tested by one or more readings
    reading   one interpretation (as published; at the matching noise levels; ...): comparisons that must all hold
    compare   a contrast of arms, sum_a w_a = 0, with thresholds of its mean

For each pair (the same style, reference and seed in every arm) the effect is d = sum_a w_a score_a. Since the seeds of
a
style and reference are correlated, their means are tested, one per style and reference: a comparison *holds* when
the mean effect is above its `above`, and is *refuted* when it is below its `below`, each by the exact
one-sided sign-flip test. A reading holds when all its comparisons do (its p is the largest of theirs) and is refuted
when one of them is (the smallest, times their number). Both p are corrected by Holm for the number of readings of the
claim. A comparison whose arms all lie at the floor (or, for a gain, at the ceiling) of the score is undecided. The
claim's verdict is that of its first reading.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from impasto.evaluation.equal_text import STRENGTHS_TEXT, Point, mean_curve, own_index, style_at_text
from impasto.reproduce.statistics import ALPHA, holm, sign_flip, student

Verdict = Literal["reproduced", "not reproduced", "undecided", "not testable here"]
Unit = str
"""One pair: "unifont, rabbit face, 0"."""
Values = Mapping[str, Mapping[Unit, float]]
"""Scores of one metric: {arm: {unit: score}}."""


@dataclass(frozen=True)
class Evidence:
    """The scores of a reading.

    scores: {"style": {arm: {unit: score}}, "text": ...}, higher is better. units: the required pairs, {unit: style and
    reference}. decides: False for smoke cells. curves: {arm: {unit: (text, style) per strength}}, as far as known.
    """

    scores: Mapping[str, Values]
    units: Mapping[Unit, str]
    decides: bool = True
    curves: Mapping[str, Mapping[Unit, Sequence[Point]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One method of generating images in a style.

    settings: changes to `recipe`, keys of TrainConfig. how: "train", or another method (`runner.HOW`, the world's
    `jobs`) with its `options`. where: the world's units, "heldout" (a reference of a style that the base was not
    trained on), "known" (no reference), "secondary" (styles for choosing) or "fresh" (as heldout, other references and
    seeds).
    layers_of: a recipe whose target layers are used (the base's card takes precedence). needs: a layer kind that the
    base must have. absent: why it cannot be run, if so. untestable: what it lacks is not to be had here, so that its
    readings have the verdict "not testable here".
    """

    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    how: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "heldout"
    layers_of: str = ""
    needs: str = ""
    absent: str = ""
    recipe: str = "style-friendly"
    untestable: bool = False


@dataclass(frozen=True)
class Measure:
    """A score for verdicts: its name in a cell, the relevant difference, and the range in which it discriminates."""

    name: str
    margin: float
    floor: float = -np.inf
    ceiling: float = np.inf


@dataclass(frozen=True)
class Compare:
    """A contrast of arms in one of the world's measures, or a weighted sum of arms against a threshold. above, below:
    thresholds in units of its margin. at_text_of: an arm at whose text the styles of all arms are read on their
    curves over strength (`evaluation.equal_text`); "" for the scores at strength 1."""

    what: str
    weights: Mapping[str, float]
    measure: str = "style"
    above: float = 0.0
    below: float = 1.0
    at_text_of: str = ""


def more(arm: str, other: str, measure: str = "style") -> Compare:
    """`arm` scores higher than `other`: holds above 0, is refuted below the margin."""
    return Compare(f"{arm} has more {measure} than {other}", {arm: 1.0, other: -1.0}, measure)


def no_less(arm: str, other: str, measure: str = "text") -> Compare:
    """`arm` scores at most a margin lower than `other` (non-inferiority); refuted below that."""
    what = f"{arm} has no less {measure} than {other}"
    return Compare(what, {arm: 1.0, other: -1.0}, measure, above=-1.0, below=-1.0)


def falls(arms: Mapping[str, float], what: str) -> Compare:
    """Style decreases along x, {arm: x}: minus the slope of the regression line times the range of x, so that the
    effect is the decrease from end to end."""
    x = np.array(list(arms.values()))
    centred = x - x.mean()
    slope = -centred / (centred @ centred) * (x.max() - x.min())
    return Compare(what, dict(zip(arms, slope.tolist(), strict=True)))


@dataclass(frozen=True)
class Reading:
    """One interpretation of a claim for another base; every comparison must hold. ours: it is not in the paper.
    untestable: why no cell can test it here; then without comparisons. equal_text: its styles are read at equal text on
    curves over strength; such readings stand beside those at strength 1, and are corrected among themselves."""

    name: str
    compares: tuple[Compare, ...] = ()
    ours: bool = False
    untestable: str = ""
    equal_text: bool = False


def with_equal_text(claim: "Claim") -> "Claim":
    """The claim with a reading at equal text beside each of its readings that compares styles of two arms: every arm is
    read at the text of the second one at strength 1, so that no comparison of texts is needed."""
    return replace(claim, readings=(*claim.readings, *filter(None, map(at_equal_text, claim.readings))))


def at_equal_text(reading: Reading) -> Reading | None:
    """The reading at equal text, None where it compares no styles of two arms."""
    compares = []
    for one in reading.compares:
        others = [arm for arm, weight in one.weights.items() if weight < 0]
        if one.measure == "style" and len(one.weights) == 2 and len(others) == 1:
            what = f"{one.what}, at the text of {others[0]}"
            compares.append(replace(one, what=what, at_text_of=others[0]))
    if not compares:
        return None
    return replace(reading, name=f"{reading.name}, at equal text", compares=tuple(compares), equal_text=True)


@dataclass(frozen=True)
class Claim:
    """id: S1; claim: one sentence; paper: the paper's own numbers; readings: the first one gives the verdict.

    shown: further arms for the page. curves: {x axis: {arm: x}}, a plot each. sheet: arms whose images are shown
    side by side.
    """

    id: str
    claim: str
    paper: Mapping[str, Any]
    readings: tuple[Reading, ...]
    shown: tuple[str, ...] = ()
    curves: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sheet: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms, in order."""
        compared = [arm for reading in self.readings for compare in reading.compares for arm in compare.weights]
        drawn = [arm for arms in self.curves.values() for arm in arms]
        return tuple(dict.fromkeys([*compared, *drawn, *self.shown, *self.sheet]))


def restricted(claim: Claim, arms: Collection[str], ours: bool = True) -> Claim | None:
    """The claim restricted to readings with these arms, with or without `ours`; None if none remains."""
    readings = tuple(r for r in claim.readings if set(arms_of(r)) <= set(arms) and (ours or not r.ours))
    if not readings:
        return None
    curves = {x: {arm: at for arm, at in own.items() if arm in arms} for x, own in claim.curves.items()}
    curves = {x: own for x, own in curves.items() if len(own) > 1}
    return replace(claim, readings=readings, shown=tuple(a for a in claim.shown if a in arms), curves=curves)


RULE = (
    "Paired over style x reference x seed; the mean over the seeds of a style and reference counts as one. A "
    "comparison holds when its mean effect is above its threshold (0 for 'more', minus the margin for 'no less'), "
    "and is refuted when it is below (the margin for 'more', minus the margin for 'no less'), by the exact one-"
    "sided sign-flip test; where both are shown (a gain, below the margin) it holds. A reading holds when all of "
    "its comparisons do (largest p), and is refuted when one is (smallest p times their number); both Holm-"
    f"corrected for the readings of the claim, at {ALPHA:g}. Readings at equal text are corrected among themselves: "
    f"each arm's style is read on its curve over the strengths {STRENGTHS_TEXT} at the mean text of the arm "
    "that it is compared with at strength 1, the most style with no less text; cells without a curve, and arms whose "
    "curve does not reach that text, decide nothing. Arms at the floor of the score, and gains at its "
    "ceiling, decide nothing; missing cells decide nothing; smoke cells never decide. A reading that needs what is not "
    "to be had here (weights, a base) is not testable here. The claim's verdict is that of its first reading."
)


def judge(
    claim: Claim,
    seen: Mapping[str, Evidence],
    measures: Mapping[str, Measure],
    left_out: Mapping[str, str] | None = None,
    untestable: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The readings of `claim` with effects, intervals, p, verdicts and, if undecided, the reasons.

    seen: {name of the reading: its evidence}. left_out: {arm: why it cannot be run here}. untestable: those of them
    that make a reading "not testable here".
    """
    results = []
    for reading in claim.readings:
        if reading.untestable:
            results.append({"reading": reading.name, "compares": [], "why": [reading.untestable]})
            continue
        own = seen[reading.name]
        rows = [compare_arms(c, own, measures[c.measure]) for c in reading.compares]
        why = [f"{arm} is left out: {(left_out or {})[arm]}" for arm in arms_of(reading) if arm in (left_out or {})]
        why += list(dict.fromkeys(row["why"] for row in rows if row["why"])) if not why else []
        results.append({"reading": reading.name, "compares": rows, "why": why})
    lacking = [bool(r.untestable or set(arms_of(r)) & set(untestable)) for r in claim.readings]
    deciding = [not no and seen[entry["reading"]].decides for entry, no in zip(results, lacking, strict=True)]
    for at_equal in (False, True):
        family = [
            (entry, decides)
            for entry, decides, reading in zip(results, deciding, claim.readings, strict=True)
            if reading.equal_text == at_equal
        ]
        correct(family)
    for entry, decides, no in zip(results, deciding, lacking, strict=True):
        entry["verdict"] = "not testable here" if no else "undecided"
        if no:
            continue
        if not decides:
            entry["why"] = ["smoke cells decide nothing", *entry["why"]]
        elif not entry["why"]:
            if entry["p_holds"] <= ALPHA:
                entry["verdict"] = "reproduced"
            elif entry["p_refuted"] <= ALPHA:
                entry["verdict"] = "not reproduced"
            else:
                entry["why"] = ["neither shown nor refuted by these cells"]
    return results


def correct(family: Sequence[tuple[dict[str, Any], bool]]) -> None:
    """Set p_holds and p_refuted of readings, (entry, whether it decides), corrected by Holm for their number."""
    for key, pick in (("p_holds", holds), ("p_refuted", refuted)):
        raw = [pick(entry["compares"]) for entry, _ in family]
        corrected = holm([p if decides else 1.0 for p, (_, decides) in zip(raw, family, strict=True)])
        for (entry, decides), own, p in zip(family, raw, corrected, strict=True):
            entry[key] = p if decides else min(1.0, len(family) * own)


def arms_of(reading: Reading) -> list[str]:
    return list(dict.fromkeys(arm for compare in reading.compares for arm in compare.weights))


def holds(rows: Sequence[Mapping[str, Any]]) -> float:
    """p that all comparisons hold: the largest (intersection-union)."""
    return max((row["p_holds"] for row in rows), default=1.0)


def refuted(rows: Sequence[Mapping[str, Any]]) -> float:
    """p that one comparison is refuted: the smallest, times their number (Bonferroni)."""
    return min(1.0, len(rows) * min((row["p_refuted"] for row in rows), default=1.0))


def compare_arms(compare: Compare, seen: Evidence, measure: Measure) -> dict[str, Any]:
    """The result of a comparison by its evidence."""
    if not compare.at_text_of:
        return evaluate_comparison(compare, seen.scores[compare.measure], measure, seen.units)
    values, why = styles_at_text(compare, seen)
    row = evaluate_comparison(compare, values, measure, seen.units)
    if why:
        row |= {"why": why, "p_holds": 1.0, "p_refuted": 1.0}
    return row


def styles_at_text(compare: Compare, seen: Evidence) -> tuple[Values, str]:
    """({arm: {unit: style at the text of `compare.at_text_of`}}, why it decides nothing, if so).

    The text is that arm's mean at strength 1 over the units of which all arms have curves. The place on an arm's curve
    is found on its mean curve over these units, and each unit's style is taken there: a curve of one unit is too noisy.
    """
    arms = list(compare.weights)
    units = [unit for unit in seen.units if all(unit in seen.curves.get(arm, {}) for arm in arms)]
    if not units:
        return {}, "no curve: its cells have scores at strength 1 only (`impasto reproduce --curves` makes the others)"
    means = {arm: mean_curve([seen.curves[arm][unit] for unit in units]) for arm in arms}
    of = means[compare.at_text_of]
    text = of[own_index(of)][0]
    values: dict[str, dict[Unit, float]] = {}
    for arm in arms:
        found = style_at_text(means[arm], text)
        if found is None:
            return {}, f"{arm} does not reach the text of {compare.at_text_of} ({text:.3f}) at any strength"
        values[arm] = {unit: found.of([style for _, style in seen.curves[arm][unit]]) for unit in units}
    lacking = len(seen.units) - len(units)
    return values, f"{lacking} of {len(seen.units)} pairs have no curve" if lacking else ""


def evaluate_comparison(
    compare: Compare, values: Values, measure: Measure, units: Mapping[Unit, str]
) -> dict[str, Any]:
    """The result of a comparison over the pairs that all of its arms have."""
    arms = list(compare.weights)
    paired = [u for u in units if all(u in values.get(arm, {}) for arm in arms)]
    of: dict[str, list[float]] = {}
    for u in paired:
        of.setdefault(units[u], []).append(sum(w * values[arm][u] for arm, w in compare.weights.items()))
    effects = [float(np.mean(own)) for own in of.values()]
    row: dict[str, Any] = {
        "what": compare.what,
        "weights": dict(compare.weights),
        "measure": measure.name,
        "above": compare.above * measure.margin,
        "below": compare.below * measure.margin,
        "pairs": len(paired),
        "wanted": len(units),
        "references": len(effects),
        "effect": None,
        "interval": None,
        "p_holds": 1.0,
        "p_refuted": 1.0,
        "why": "",
    }
    if len(paired) < len(units):
        row["why"] = f"{len(units) - len(paired)} of {len(units)} pairs are missing"
    if not paired:
        return row
    row["effect"], row["interval"] = float(np.mean(effects)), student(effects)
    if row["why"]:
        return row
    means = [float(np.mean([values[arm][u] for u in paired])) for arm in arms]
    if max(means) < measure.floor:
        row["why"] = f"all arms lie below {measure.floor:g} in {measure.name}, where it cannot tell them apart"
    elif compare.above >= 0 and min(means) > measure.ceiling:
        row["why"] = f"all arms lie above {measure.ceiling:g} in {measure.name}, where nothing can be gained"
    else:
        row["p_holds"] = sign_flip(effects, row["above"])
        row["p_refuted"] = sign_flip([-e for e in effects], -row["below"])
    return row
