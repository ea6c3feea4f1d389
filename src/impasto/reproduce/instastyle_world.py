"""The small world of InstaStyle: one reference, other concepts from its inversion noise, judges and exact measures.

    white       3 primary held-out styles x 1 (smoke) or 3 (full) references on white; 10 or 20 evaluation concepts
    ground      the same on coloured and dark grounds, which neither caption nor prompts name
    single      one style (smoke) or three (full) x 1 reference: what trains for one claim alone
    pair        two styles: smoke 1 pair, full 3 pairs x 2 references; the alpha x beta grid
    line        the same pairs; alpha = beta from 0 to 1
    trio        the three styles together
    references  per style three references of other concepts
    secondary   for choosing settings: two secondary styles, other concepts

The reference decides the noise, so that all units have seed 0. Layout is the SSIM with the reference; apart the cosine
with the style's mean features less that with the mean features of its nearest held-out style.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impasto.artworld import drawn_in, free_concepts, load_meta, load_slice, style_index
from impasto.artworld.colours import GROUNDS, NAMED
from impasto.errors import UserError, nearest
from impasto.evaluation import evaluate
from impasto.evaluation.paired import ssim
from impasto.evaluation.samples import read_folder, to_tensor
from impasto.evaluation.truth import true_pictures
from impasto.families.base import Family
from impasto.generation import GRID, LINE
from impasto.methods.config import InstaStyle
from impasto.methods.instastyle import fill, sampler_of
from impasto.reproduce.claims import Measure, Unit
from impasto.reproduce.small_world import METRICS, SmallWorld, heldout_units, words

SIZES = {"smoke": (1, 10), "full": (3, 20)}
"""References, evaluation concepts."""
SINGLE = "streamline-emojis"
PROMPTS = {"pair": 2, "line": 2, "trio": 4, "references": 4}
"""Prompts of units with several references."""
NEAR = {"fluent-emoji-3d": "streamline-emojis", "streamline-emojis": "symbola", "unifont": "ph"}
"""The held-out style of highest cosine between mean features of the reference concepts (.06, .23, .39)."""
TRIO = ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5))
"""Weights of three styles: the first with each of the others."""
MEASURES = {
    "style": Measure("style_accuracy", margin=0.05, floor=0.10, ceiling=0.97),
    "text": Measure("concept_top5", margin=0.05, floor=0.10),
    "probability": Measure("style_probability", margin=0.03),
    "cosine": Measure("style_cosine", margin=0.05),
    "leakage": Measure("leakage", margin=0.05),
    "layout": Measure("layout", margin=0.02),
    "palette": Measure("palette", margin=3.0),
    "ground": Measure("ground", margin=5.0),
    "apart": Measure("apart", margin=0.05),
    "consistency": Measure("consistency", margin=0.05),
    "tau": Measure("tau_alpha", margin=0.1),
    "alpha_over": Measure("alpha_over_beta", margin=0.05),
    "present": Measure("present", margin=0.05),
}
SCORES = (*METRICS, "palette", "ground")


@dataclass(frozen=True)
class NoiseWorld:
    """See `runner.World`. judges, encoder: the packaged ones when None. limit: fewer prompts."""

    name: str = "noise"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    judges: Any = None
    encoder: Any = None
    limit: int | None = None
    jobs: Mapping[str, Any] = field(default_factory=dict)
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = True
    shown = (
        *("style_accuracy", "style_probability", "style_cosine", "concept_top5", "leakage", "layout", "palette"),
        *("ground", "apart", "consistency", "tau_alpha", "tau_beta", "effect_alpha", "effect_beta", "present"),
    )

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "Small world: one reference of a held-out style, evaluation concepts generated from its inversion noise "
            "(50 steps, guidance 2.5 for every arm), scored by the judges, by the cosine of the style judge's features "
            "with the reference, and by two exact errors against the true image of the concept in that style: palette "
            "(Wasserstein-1 of channel values) and ground (border), both 0 to 255. On coloured grounds only these two "
            "count, as the judges do not see true images there reliably. `smoke`: 3 styles x 1 reference, 10 concepts; "
            "`full`: 3 x 3, 20 concepts. One seed: the reference decides the noise. How: "
            "[reproduce.md](../../reproduce.md)."
        )

    def ready(self, cells: str) -> bool:
        """Always: the slice is in the package."""
        return True

    def sampling(self, family: Family) -> dict[str, Any]:
        """The method's own sampling on a base."""
        method = fill(InstaStyle(), family)
        found = {"steps": method.steps, "guidance": method.guidance, "fixed_point": method.fixed_point}
        return found | ({"sampler": sampler} if (sampler := sampler_of(family)) else {})

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        if cells not in SIZES:
            raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(SIZES))}")
        references, n = SIZES[cells]
        n = min(self.limit or n, n)
        white = with_words(heldout_units(primary(), references, [0], n))
        if where == "secondary":
            chosen = {style_index(s): free_concepts() for s in ("icon-park", "symbola")}
            return with_words(heldout_units(chosen, references, [0], n))
        if where == "white":
            return white
        if where == "ground":
            return on_grounds(white)
        first = {style: [u for u in white.values() if u["style"] == style] for style in names_of_primary()}
        if where == "single":
            chosen = [first[style][0] for style in ([SINGLE] if cells == "smoke" else first)]
            return {name: unit for name, unit in white.items() if unit in chosen}
        if where == "references":
            three = with_words(heldout_units(primary(), 3, [0], n))
            own = {style: [u for u in three.values() if u["style"] == style] for style in names_of_primary()}
            keys = ("style", "reference", "caption", "words")
            firsts = {style: {key: units[0][key] for key in keys} for style, units in own.items()}
            return {
                f"{style}, 3 references": several(units, where, 3)
                | {"others": [firsts[style], *(one for other, one in firsts.items() if other != style)]}
                for style, units in own.items()
            }
        groups = {"pair": 2, "line": 2, "trio": 3}
        if where not in groups:
            raise ValueError(where)
        found = {}
        for styles in list(combinations(first, groups[where]))[: 1 if cells == "smoke" else None]:
            for k in range(min(references, 2)):
                units = [first[style][k] for style in styles]
                unit = several(units, where, len(COUNTS[where]))
                found[f"{unit['style']}, {unit['reference']}"] = unit
        return found

    def instruments(self) -> dict[str, Any]:
        return SmallWorld(judges=self.judges, encoder=self.encoder).instruments()

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return references_hash(spec.get("references") or [spec])

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        return reference_image((spec.get("references") or [spec])[0])

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        world = SmallWorld(judges=self.judges, encoder=self.encoder)
        judges = world._judges()
        images = to_tensor([sample.image for sample in read_folder(folder)])
        if "references" in spec:
            return scores_of_several(judges, images, spec)
        asked = folder.parent / "concepts.txt"  # prompts of some arms name no style
        asked.write_text("".join(f"{label}\n" for label in spec["plain"]), encoding="utf-8")
        kind = {"judges": judges, "encoder": world._encoder(), "ground": NAMED[spec.get("ground", "white")]}
        found = evaluate(folder, spec["style"], asked, reference, spec["reference"], **kind)
        scores = {name: float(found[name]) for name in SCORES if found[name] is not None}
        scores["layout"] = float(ssim(images, to_tensor([reference_image(spec)])).mean())
        if (near := NEAR.get(spec["style"])) and "ground" not in spec:
            own, other = (mean_features(judges, style) for style in (spec["style"], near))
            scores["apart"] = float((judges.style_features(images) @ (own - other)).mean())
        return scores


COUNTS: dict[str, Sequence[Any]] = {"pair": [(a, b) for a in GRID for b in GRID], "line": LINE, "trio": TRIO}
"""Images of each prompt, by units of several styles."""


def names_of_primary() -> list[str]:
    meta = load_meta()
    return [meta["style_names"][style] for style in meta["split"]["primary_styles"]]


def primary() -> dict[int, list[int]]:
    """{primary style: its evaluation concepts}."""
    split = load_meta()["split"]
    return {
        style: [c for c in split["evaluation_concepts"] if c in drawn_in(style)] for style in split["primary_styles"]
    }


def with_words(units: dict[Unit, dict[str, Any]]) -> dict[Unit, dict[str, Any]]:
    """Units with "words", the style's, and "plain", the prompts without them."""
    for unit in units.values():
        style = words(style_index(unit["style"]))
        unit |= {
            "words": style,
            "thing": unit["reference"],
            "plain": [text.removesuffix(f", {style}") for text in unit["prompts"]],
        }
    return units


def on_grounds(units: Mapping[Unit, Mapping[str, Any]]) -> dict[Unit, dict[str, Any]]:
    """The units with their references on coloured and, where the style has colours, by turns on dark grounds."""
    meta, found = load_meta(), {}
    for i, (name, unit) in enumerate(units.items()):
        colour = meta["styles"][style_index(unit["style"])]["colour"]
        names = GROUNDS["dark" if colour and i % 2 else "coloured"]
        own = {**unit, "ground": names[i % len(names)]}
        found[f"{name}, {own['ground']}"] = own | {"reference_sha256": references_hash([own])}
    return found


def several(units: Sequence[Mapping[str, Any]], where: str, count: int) -> dict[str, Any]:
    """A unit of several references. references: their parts; the prompts are the first one's."""
    keys = ("style", "reference", "caption", "words")
    own = [{key: unit[key] for key in keys} for unit in units]
    n, styles = PROMPTS[where], dict.fromkeys(unit["style"] for unit in units)
    unit = {"style": " + ".join(styles), "reference": " + ".join(unit["reference"] for unit in units), "seed": 0}
    unit |= {"references": own, "reference_sha256": references_hash(own), "caption": units[0]["caption"]}
    return unit | {name: list(units[0][name][:n]) for name in ("prompts", "plain")} | {"count": count}


def reference_image(spec: Mapping[str, Any]) -> Image.Image:
    """The true image of {"style", "reference"} on its "ground" (white)."""
    return _reference(spec["style"], spec["reference"], spec.get("ground", "white"))


@cache
def _reference(style: str, label: str, ground: str) -> Image.Image:
    world = load_slice(styles=[style])
    return Image.fromarray(world.select(concepts=[label]).rgb(NAMED[ground])[0])


def references_hash(references: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of the pixels of all references."""
    return hashlib.sha256(b"".join(reference_image(one).tobytes() for one in references)).hexdigest()


@cache
def _features(judges: Any, style: str) -> Tensor:
    index = style_index(style)
    concepts = [c for c in load_meta()["split"]["reference_concepts"] if c in drawn_in(index)]
    mean = judges.style_features(to_tensor(list(true_pictures(index, concepts).values()))).mean(0)
    return mean / mean.norm()


def mean_features(judges: Any, style: str) -> Tensor:
    """Unit vector: mean style features of the true images of the reference concepts."""
    return _features(judges, style)


def scores_of_several(judges: Any, images: Tensor, spec: Mapping[str, Any]) -> dict[str, float]:
    """Scores of the images of several references, prompt by prompt.

    consistency: mean cosine of the style features of a prompt's images, over pairs of references. Of mixtures, by the
    cosine with each reference, see `mixing_scores`; present: cosine with the two styles of a mixture less that with the
    third.
    """
    features = judges.style_features(images)
    arm = spec["arm"]
    if arm["how"] == "references":
        rows = features.view(len(spec["prompts"]), spec["count"], -1)
        pairs = rows @ rows.transpose(1, 2)
        other = ~torch.eye(spec["count"], dtype=torch.bool)
        own = judges.style(images)[:, judges.style_names.index(spec["style"])]
        return {"consistency": float(pairs[:, other].mean()), "style_probability": float(own.mean())}
    targets = judges.style_features(to_tensor([reference_image(one) for one in spec["references"]]))
    cosines = (features @ targets.T).view(len(spec["prompts"]), spec["count"], -1).mean(0)  # mixture x style
    if arm["of"] == "trio":
        gaps = [row[w > 0].mean() - row[w == 0].mean() for row, w in zip(cosines, map(torch.tensor, TRIO), strict=True)]
        return {"present": float(torch.stack(gaps).mean())}
    return mixing_scores(cosines)


def mixing_scores(cosines: Tensor) -> dict[str, float]:
    """Of cosines (mixtures, 2) with two styles over the grid or the line: tau_alpha, tau_beta, Kendall's tau of each
    style's cosine with its share of the noise or of the prompt, mean over both styles (and rows or columns of the
    grid); effect_alpha, effect_beta: rise of the cosine over the shares; a line has alpha = beta."""
    rise = torch.stack([-cosines[:, 0], cosines[:, 1]], dim=1)  # of the second style's share
    if len(cosines) == len(LINE):
        return {"tau_alpha": mean_tau([rise[:, i] for i in (0, 1)]), "effect_alpha": float((rise[-1] - rise[0]).mean())}
    table = rise.view(len(GRID), len(GRID), 2)  # alpha x beta x style
    found = {}
    for name, own in (("alpha", table), ("beta", table.transpose(0, 1))):
        found[f"tau_{name}"] = mean_tau([own[:, j, i] for j in range(len(GRID)) for i in (0, 1)])
        found[f"effect_{name}"] = float((own[-1] - own[0]).mean())
    return found | {"alpha_over_beta": found["effect_alpha"] - found["effect_beta"]}


def mean_tau(series: Sequence[Tensor]) -> float:
    """Mean Kendall's tau of series with their order: (rising - falling pairs) / pairs, in [-1, 1]."""
    taus = []
    for values in series:
        signs = (values[None, :] - values[:, None]).sign().triu(1)
        taus.append(float(signs.sum()) / (len(values) * (len(values) - 1) / 2))
    return sum(taus) / len(taus)
