"""The small world: one reference of a held-out style of the art world, 12 or 24 evaluation concepts, the judges.

    smoke   3 primary held-out styles x 1 reference x 1 seed, 12 evaluation concepts
    full    3 primary held-out styles x 3 references x 3 seeds, 24 evaluation concepts

References are evenly spaced reference concepts of the packaged slice, prompts "{label}, {style description}", as in the
demo. Claims about the base alone (prompt switching) are tested on train styles: 3 x 1 seed, or 12 x 3. Settings are
chosen on the 4 secondary held-out styles and concepts that are neither evaluation nor reference concepts, x 1 or 2
references, and then tested on the primary styles once: 3 x 18 fresh references x 1 fresh seed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import concept_index, drawn_in, free_concepts, load_meta, spread, style_index
from impasto.artworld.captions import prompt
from impasto.demo import REFERENCES
from impasto.errors import UserError, nearest
from impasto.evaluation import Encoder, evaluate, load_encoder
from impasto.evaluation.truth import true_pictures
from impasto.files import MODELS
from impasto.judges.model import Judges
from impasto.reproduce.claims import Measure, Unit

CELLS = {"smoke": (1, 1, 12), "full": (3, 3, 24)}
"""References, seeds, evaluation concepts."""
SECONDARY = {"smoke": (1, 1, 12), "full": (2, 1, 24)}
"""The same of the secondary styles, with other concepts."""
FRESH = {"smoke": (1, 1, 12), "full": (18, 1, 24)}
"""The same of the primary styles, with other references and seeds. The style accuracies of two equally good laws differ
by .08 (standard deviation) per cell, about half of it due to the reference: the power to distinguish 0 from -.03 is one
third with 9 effects, .8 with 54."""
FRESH_SEED = 100  # first seed of fresh units
KNOWN = (
    *("twemoji", "openmoji", "openmoji-black", "noto-v1", "fluent-emoji-high-contrast", "emojione-v1"),
    *("noto", "fluent-emoji-flat", "emojione", "emojione-monotone", "fxemoji", "noto-emoji-mono"),
)
"""All train styles, those of the base's grid (pretrain/score.py) first; smoke cells use the first three. Six could not
refute anything: 2^-6, times S8's three comparisons and two readings, is .094."""
MEASURES = {
    "style": Measure("style_accuracy", margin=0.05, floor=0.10, ceiling=0.97),
    "text": Measure("concept_top5", margin=0.05, floor=0.10),
}
METRICS = (
    *("style_accuracy", "style_probability", "kind_accuracy", "concept_top1", "concept_top5", "leakage"),
    *("style_cosine", "clip_i_reference", "clip_i_style", "clip_i_paired", "ssim", "clip_t"),
)


@dataclass(frozen=True)
class SmallWorld:
    """See `runner.World`. judges, encoder: the packaged ones when None. styles, secondary, known, concepts: fewer."""

    name: str = "small-world"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    judges: Any = None
    encoder: Any = None
    styles: int = 3
    secondary: int = 4
    known: int = len(KNOWN)
    concepts: int | None = None
    sizes = ("smoke", "full")
    undecided = ("smoke",)
    to_reference = False
    jobs: Mapping[str, Any] = field(default_factory=dict)
    shown = (
        *("style_accuracy", "style_probability", "concept_top1", "concept_top5", "leakage"),
        *("clip_i_style", "ssim", "clip_t"),
    )

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "Small world: one reference of a held-out style that the base never saw (fluent-emoji-3d, "
            "streamline-emojis, unifont), evaluation concepts drawn in it, scored by the judges. `smoke`: 3 styles "
            "x 1 reference x 1 seed, 12 concepts; `full`: 3 x 3 x 3, 24 concepts. Claims about the base alone use "
            "styles that it knows; what is chosen is chosen on four other held-out styles and other concepts, then "
            "tried on 3 x 18 references that nothing else has used. How: [reproduce.md](../../reproduce.md)."
        )

    def ready(self, cells: str) -> bool:
        """Always: the slice is in the package."""
        return True

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        if cells not in CELLS:
            raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(CELLS))}")
        references, seeds, concepts = {"secondary": SECONDARY, "fresh": FRESH}.get(where, CELLS)[cells]
        concepts, split = self.concepts or concepts, load_meta()["split"]
        if where == "known":
            return known_units(KNOWN[: min(self.known, 3 if cells == "smoke" else len(KNOWN))], seeds, concepts)
        if where == "secondary":
            prompted = {style: free_concepts() for style in split["secondary_styles"][: self.secondary]}
            return heldout_units(prompted, references, range(seeds), concepts)
        prompted = {
            style: [c for c in split["evaluation_concepts"] if c in drawn_in(style)]
            for style in split["primary_styles"][: self.styles]
        }
        if where == "fresh":
            return heldout_units(prompted, references, range(FRESH_SEED, FRESH_SEED + seeds), concepts, fresh=True)
        return heldout_units(prompted, references, range(seeds), concepts)

    def instruments(self) -> dict[str, Any]:
        judges = self._judges()
        hashes = {which: judges.card[which]["sha256"] for which in ("style", "concept") if which in judges.card}
        return hashes | {"clip": clip_hash() if self.encoder is None else self.encoder.name}

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return None if spec["reference"] is None else picture_hash(spec["style"], spec["reference"])

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        return None if spec["reference"] is None else picture(spec["style"], spec["reference"])

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        found = evaluate(
            folder,
            spec["style"],
            reference=reference,
            reference_concept=spec["reference"],
            judges=self._judges(),
            encoder=self._encoder(),
        )
        return {name: float(found[name]) for name in METRICS if found[name] is not None}

    def _judges(self) -> Any:
        return packaged_judges() if self.judges is None else self.judges

    def _encoder(self) -> Any:
        return packaged_encoder() if self.encoder is None else self.encoder


def heldout_units(
    prompted: Mapping[int, Sequence[int]], references: int, seeds: Iterable[int], n: int, fresh: bool = False
) -> dict[Unit, dict[str, Any]]:
    """Held-out styles x references x seeds, with n prompts each. prompted: {style: concepts}. fresh: exclude the
    references of the other units and of the demo."""
    meta, units = load_meta(), {}
    most = max(r for r, _, _ in CELLS.values())
    for style, concepts in prompted.items():
        known = [c for c in meta["split"]["reference_concepts"] if c in drawn_in(style)]
        chosen = spread(known, most)
        if fresh:
            shown = {concept_index(label) for label in REFERENCES.values()}
            chosen = spread([c for c in known if c not in chosen and c not in shown], references)
        for concept in chosen[:references]:
            for seed in seeds:
                unit = make_unit(style, spread(concepts, n), seed)
                label = meta["concepts"][concept]["label"]
                unit |= {"reference": label, "caption": prompt(label, words(style))}
                unit["reference_sha256"] = picture_hash(unit["style"], label)
                units[f"{unit['style']}, {label}, {seed}"] = unit
    return units


def known_units(styles: Sequence[str], seeds: int, concepts: int) -> dict[Unit, dict[str, Any]]:
    """Train styles x seeds, without reference. plain: the prompts without the style."""
    meta = load_meta()
    ids = [style_index(style) for style in styles]
    prompted = spread(meta["split"]["evaluation_concepts"], concepts)
    return {
        f"{meta['style_names'][style]}, {seed}": make_unit(style, prompted, seed)
        | {"reference": None, "plain": [meta["concepts"][c]["label"] for c in prompted]}
        for style in ids
        for seed in range(seeds)
    }


def make_unit(style: int, concepts: Sequence[int], seed: int) -> dict[str, Any]:
    """The common part of all units."""
    meta = load_meta()
    prompts = [prompt(meta["concepts"][c]["label"], words(style)) for c in concepts]
    return {"style": meta["style_names"][style], "prompts": prompts, "seed": seed}


def words(style: int) -> str:
    """The style's description in caption and prompts."""
    return load_meta()["styles"][style]["descriptions"][0]


@cache
def picture(style: str, label: str) -> Image.Image:
    """A true image of the slice."""
    concept = concept_index(label)
    return true_pictures(style_index(style), [concept])[concept]


@cache
def picture_hash(style: str, label: str) -> str:
    """sha256 of its pixels."""
    return hashlib.sha256(picture(style, label).tobytes()).hexdigest()


@cache
def packaged_judges() -> Judges:
    return Judges.load()


@cache
def packaged_encoder() -> Encoder:
    return load_encoder()


@cache
def clip_hash() -> str:
    """sha256 of the small CLIP's weights."""
    return hashlib.sha256((MODELS / "clip" / "model.safetensors").read_bytes()).hexdigest()
