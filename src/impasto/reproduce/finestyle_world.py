"""The small world with scenes as references: three things of one primary style on a plain ground, the judges.

    scene      evaluation concepts that the reference does not show
    near       concepts of the same kind (emoji subgroup) as one of its things
    middle     of the same emoji group as one of its things, but of another kind
    far        of other groups than all its things (near, middle and far without faces and people, which are many and
               hard to tell apart)
    ground     evaluation concepts on a white ground, on the reference's ground and on a third one, each named
    subset     the reference's things: one or two of the three at a time

smoke: one style, one reference, one seed, 12 prompts; full: 3 styles x 3 references (on white, a coloured and a dark
ground; of styles without colours a second coloured one) x 3 seeds, 16 prompts. Units of "ground" are those of the
references on a coloured or dark ground. Captions "a bus, a cookie and a cat, {style description}, on a navy background"
(no ground where it is white), prompts "{label}, {style description}".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from impasto.artworld import concept_index, drawn_in, load_meta, spread, style_index
from impasto.artworld.captions import join_labels, prompt
from impasto.artworld.colours import NAMED
from impasto.errors import UserError, nearest
from impasto.evaluation.leakage import place_log_odds, scene_leak
from impasto.evaluation.samples import read_folder, to_tensor
from impasto.reproduce import finestyle_jobs, styledrop_jobs
from impasto.reproduce.claims import Measure, Unit
from impasto.reproduce.folder_jobs import stored_scores
from impasto.reproduce.scenes import compose, key_of, on_ground, scene_hash, scene_of
from impasto.reproduce.small_world import SmallWorld, words

SIZES = {"smoke": (1, 1, 12), "full": (3, 3, 16)}
"""References, seeds, prompts."""
SMOKE_STYLE = "streamline-emojis"
WHERE = ("scene", "near", "middle", "far", "ground", "subset")
THIRD = "red"
"""A ground that no reference has."""
CROWDED = ("smileys-emotion", "people-body")
BORDER = 4
"""Pixels at the edge of an image that show its ground."""
MEASURES = {
    "style": Measure("style_accuracy", margin=0.05, floor=0.10, ceiling=0.97),
    "text": Measure("concept_top5", margin=0.05, floor=0.10),
    "leak": Measure("leak", margin=0.25),
    "both": Measure("harmonic_mean", margin=0.05),
    "ground": Measure("asked_ground", margin=0.05, floor=0.10),
    "asked": Measure("asked", margin=0.05),
}


@dataclass(frozen=True)
class SceneWorld:
    """See `runner.World`. judges: the packaged ones when None. styles: the primary ones when empty. limit: largest
    number of prompts."""

    name: str = "scenes"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    judges: Any = None
    styles: tuple[str, ...] = ()
    limit: int | None = None
    jobs: Mapping[str, Any] = field(
        default_factory=lambda: {**finestyle_jobs.JOBS, "styledrop": styledrop_jobs.styledrop_job}
    )
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = True
    shown = (
        *("style_accuracy", "concept_top5", "harmonic_mean", "leak", "leak_shown", "asked_ground", "asked"),
        "region_iou",
    )

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "Small world with scenes: one reference of three things in a held-out style, on a white, coloured or dark "
            "ground; their regions are found by the base's denoising error, not given. Style: accuracy of the style "
            "judge; text: concept top-5; leak: log-odds that the concept judge gives the reference's unprompted things "
            "(the largest over the image and windows of it, less the median over all concepts), minus the same on the "
            "base's image of the same prompt and seed; shown: share of images judged to show such a thing. `smoke` is "
            "one reference and one seed. How: [reproduce.md](../../reproduce.md)."
        )

    def ready(self, cells: str) -> bool:
        """Always: the slice is in the package."""
        return True

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        if cells not in SIZES:
            raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(SIZES))}")
        references, seeds, n = SIZES[cells]
        primary = [load_meta()["style_names"][style] for style in load_meta()["split"]["primary_styles"]]
        styles = self.styles or (primary if cells == "full" else [SMOKE_STYLE])
        numbers = range(references)
        if where == "ground":  # not the first, which is on white
            numbers = range(1, max(2, references))
        return {
            f"{style}, {scene['name']}, {seed}": make_unit(style, scene, where, seed, min(n, self.limit or n))
            for style in styles
            for number in numbers
            if (scene := scene_of(style, number))
            for seed in range(seeds)
        }

    def instruments(self) -> dict[str, Any]:
        return {which: self._judges.card[which]["sha256"] for which in ("style", "concept") if self._judges.card}

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return scene_hash(spec["style"], *key_of(spec["scene"]))

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        return Image.fromarray(compose(spec["style"], *key_of(spec["scene"])).rgb)

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        """Of images in the order of the prompts, each `count` times."""
        images = [sample.image for sample in read_folder(folder)]
        asked = [[concept_index(label) for label in own] for own in spec["asked"]]
        odds = place_log_odds(self._judges, images)
        base = base_odds(self._judges, finestyle_jobs.base_folder(spec) / "images")
        pixels = to_tensor(images)
        style = self._judges.style(pixels).argmax(1) == style_index(spec["style"])
        scores = {"style_accuracy": style.double().mean().item()}
        if all(len(own) == 1 for own in asked):
            best = self._judges.concept(pixels).topk(5).indices.tolist()
            scores["concept_top5"] = float(np.mean([own[0] in row for own, row in zip(asked, best, strict=True)]))
            scores["harmonic_mean"] = harmonic_mean(scores["style_accuracy"], scores["concept_top5"])
        else:
            z = torch.stack([row[own].mean() for row, own in zip(shown(odds, self._judges), asked, strict=True)])
            scores["asked"] = z.mean().item()
        things = [concept_index(label) for label in spec["scene"]["things"]]
        if leak := scene_leak(odds, base, things, asked, self._judges.concept_threshold):
            assert leak.log_odds is not None
            scores["leak"] = leak.log_odds
            scores["leak_shown"] = float(np.mean([one.shown for one in leak.things.values()]))
        if "grounds" in spec:
            scores["asked_ground"] = ground_accuracy(images, spec["grounds"])
        return scores | stored_scores(folder.parent)

    @cached_property
    def _judges(self) -> Any:
        return SmallWorld(judges=self.judges)._judges()

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded judges: each worker loads its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_judges"}


def shown(odds: Tensor, judges: Any) -> Tensor:
    """float64 [n, concepts]: 1 where an image is judged to show a concept."""
    return (odds.sigmoid() >= judges.concept_threshold).double()


def harmonic_mean(a: float, b: float) -> float:
    """2 a b / (a + b), 0 where both are."""
    return 2 * a * b / (a + b) if a + b else 0.0


def ground_accuracy(images: Sequence[Image.Image], asked: Sequence[str]) -> float:
    """Share of the images whose ground (median colour of the border) is nearest to the asked colour, of those asked."""
    names = sorted(set(asked))
    colours = np.array([NAMED[name] for name in names])
    grounds = np.array([border_colour(image) for image in images])
    nearest_one = np.linalg.norm(grounds[:, None] - colours[None], axis=-1).argmin(1)
    return float(np.mean([names[i] == name for i, name in zip(nearest_one, asked, strict=True)]))


def border_colour(image: Image.Image) -> np.ndarray:
    """Median r, g, b of the outer BORDER pixels."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    inner = np.zeros(pixels.shape[:2], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.median(pixels[~inner], axis=0)


@cache
def base_odds(judges: Any, folder: Path) -> Tensor:
    """`place_log_odds` of the base's images."""
    return place_log_odds(judges, [sample.image for sample in read_folder(folder)])


# Units


def make_unit(style: str, scene: dict[str, Any], where: str, seed: int, n: int) -> dict[str, Any]:
    """One pair: reference, prompts with the labels that each names, seed. "words": the style's."""
    if where not in WHERE:
        raise ValueError(f"unknown units {where!r}")
    description, ground = words(style_index(style)), scene["ground"]
    caption = prompt(join_labels(scene["things"]), description)
    unit = {
        "style": style,
        "reference": scene["name"],
        "reference_sha256": scene_hash(style, *key_of(scene)),
        "scene": {key: value for key, value in scene.items() if key != "name"},
        "caption": caption if ground == "white" else on_ground(caption, ground),
        "words": description,
        "seed": seed,
    }
    if where == "subset":
        things = scene["things"]
        asked = [[thing] for thing in things] + [[a, b] for i, a in enumerate(things) for b in things[i + 1 :]]
        return unit | {
            "asked": [own for own in asked for _ in range(2)],
            "prompts": [prompt(join_labels(own), description) for own in asked for _ in range(2)],
        }
    labels = [load_meta()["concepts"][c]["label"] for c in prompted(style, scene, where, n)]
    unit |= {"asked": [[label] for label in labels], "prompts": [prompt(label, description) for label in labels]}
    if where == "ground":
        grounds = [("white", ground, THIRD)[i % 3] for i in range(len(labels))]
        texts = [on_ground(text, own) for text, own in zip(unit["prompts"], grounds, strict=True)]
        unit |= {"prompts": texts, "grounds": grounds}
    return unit


def prompted(style: str, scene: Mapping[str, Any], where: str, n: int) -> list[int]:
    """Concepts of the prompts, evenly spread over those there are."""
    meta = load_meta()
    concepts, things = meta["concepts"], [concept_index(label) for label in scene["things"]]
    if where in ("scene", "ground"):
        known = [c for c in meta["split"]["evaluation_concepts"] if c in drawn_in(style_index(style))]
        return spread(known, n)
    kinds, groups = ({concepts[c][key] for c in things} for key in ("subgroup", "group"))
    drawn = [c for c in meta["drawn"][style_index(style)] if c not in things and concepts[c]["group"] not in CROWDED]
    pools = {
        "near": [c for c in drawn if concepts[c]["subgroup"] in kinds],
        "middle": [c for c in drawn if concepts[c]["subgroup"] not in kinds and concepts[c]["group"] in groups],
        "far": [c for c in drawn if concepts[c]["group"] not in groups],
    }
    return spread(pools[where], min(n, len(pools[where])))
