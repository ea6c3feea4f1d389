"""StyleInject's own protocol (section V-A), for users with SD1.5's weights and a folder of image-text pairs.

    200 prompts in 9 categories (the prompt set styleinject-200; the authors' list is not published, these are our own)
    x 4 fixed seeds = 800 images per arm; Euler ancestral, 50 steps, guidance 7.5
    CLIP-S   2.5 max(cos, 0), ViT-B/32, to the prompt                        decides "text"
    ImageReward and PickScore are not part of this package: preference is not testable here

`--references DIR` is the training folder: captioned images of at least 512 px (the paper: 167,000 of LAION's
improved_aesthetics_6.5plus). A unit is one category with one seed; `smoke` is 2 prompts of each and one seed. One
training serves all units of a folder.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.data import folder as folders
from impasto.data import prompt_sets
from impasto.errors import UserError
from impasto.evaluation import Encoder, clip
from impasto.evaluation.samples import read_folder
from impasto.reproduce import folder_jobs
from impasto.reproduce.claims import Arm, Claim, Measure, Reading, more
from impasto.reproduce.clip_world import CLIP, ClipWorld
from impasto.reproduce.runner import BaseSpec, Job

SAMPLING = {"steps": 50, "guidance": 7.5, "sampler": "euler-ancestral", "size": 512}
SIZES = {"smoke": (2, 1), "full": (None, 4)}
"""Prompts per category (None: all), seeds."""
MEASURES = {"style": Measure("clip_s", margin=0.002), "text": Measure("clip_s", margin=0.002)}
"""The differences of Table I lie between .001 and .007."""
RECIPE, STEPS = "styleinject-paper", 1000


@dataclass(frozen=True)
class PromptWorld(ClipWorld):
    """See `runner.World`. references: the training folder. clip: a folder, a hub id or an `Encoder`."""

    references: Path
    clip: Encoder | Path | str = CLIP
    name: str = "paper"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = False
    shown = ("clip_s",)

    @property
    def jobs(self) -> Mapping[str, Any]:
        """Training on the folder."""
        return {"folder": partial(paper_job, images=self.references)}

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "The paper's protocol: 200 prompts of our own in its 9 categories, 4 seeds (`smoke`: 18 prompts, 1 seed), "
            f"Euler ancestral, 50 steps, guidance 7.5; CLIP-S by {self.clip}. Preference is not testable here."
        )

    def ready(self, cells: str) -> bool:
        return self.references.is_dir()

    def units(self, cells: str, where: str) -> dict[str, dict[str, Any]]:
        per_category, seeds = SIZES[cells]
        common = {"reference_sha256": self.reference_hash({}), "sampling": SAMPLING}
        return {
            f"{category}, {seed}": {
                **common,
                "style": category,
                "reference": "folder",
                "prompts": prompts[:per_category],
                "seed": seed,
            }
            for category, prompts in read_prompts().items()
            for seed in range(seeds)
        }

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return folder_hash(self.references)

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        """None: the training data is a folder."""
        return None

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        samples = read_folder(folder)
        texts = self._clip.texts([sample.prompt or "" for sample in samples])
        assert texts is not None  # checked by `instruments`
        cosines = clip.clip_t(self._clip.images([sample.image for sample in samples]), texts)
        return {"clip_s": float((2.5 * cosines.clamp(min=0)).mean())}


@cache
def read_prompts() -> dict[str, list[str]]:
    """{category: prompts} of the set styleinject-200."""
    found: dict[str, list[str]] = {}
    for item in prompt_sets.read_prompts("styleinject-200").items:
        found.setdefault(str(item.category), []).append(item.content)
    return found


@cache
def folder_hash(folder: Path) -> str:
    """sha256 of names, sizes and captions of a folder's images (not of the pixels: it may hold 167,000)."""
    if not folder.is_dir():
        raise UserError(f"--references {str(folder)!r} is not a folder: give one of captioned images to train on")
    rows = [[e.path.relative_to(folder).as_posix(), e.path.stat().st_size, e.caption] for e in folders.listing(folder)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def paper_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None, *, images: Path) -> Job:
    """Train on the folder with seed 0, whatever the images' seed."""
    own = {"settings": spec["arm"]["settings"], "data": {"sha256": spec["reference_sha256"]}}
    return folder_jobs.use(folder_jobs.trained({**spec, "seed": 0}, place, own, images=images), spec, folder)


def recipe(what: str, **settings: Any) -> Arm:
    """An arm of the paper's recipe."""
    return Arm(what, {"steps": STEPS, **settings}, how="folder", where="prompts", recipe=RECIPE)


def lora(rank: int) -> Arm:
    return recipe(f"LoRA r {rank}", adapter="lora", rank=rank, targets=("to_q", "to_v"))


ARMS: dict[str, Arm] = {
    "base": Arm("SD1.5", how="prompt", where="prompts"),
    "full": recipe("the whole U-Net", adapter="full", lr=1e-5),
    **{f"lora {rank}": lora(rank) for rank in (32, 128, 512)},
    **{f"n {n}": recipe(f"StyleInject n {n} r 32", **{"adapter.n": n}) for n in (1, 4, 16)},
    "DMA": recipe("StyleInject n 16 r 32 without AdaIN (DMA alone)", **{"adapter.sta": False}),
}


def beats(arm: str, *others: str) -> tuple:
    """More text than each of the others."""
    return tuple(more(arm, other, "text") for other in others)


def claims(own: tuple[Claim, ...], preference: Reading) -> tuple[Claim, ...]:
    """I1, I2 and I3 by CLIP-S. own: the claims of the small world, for their sentences and the paper's numbers."""
    readings = {
        "I1": beats("n 16", "base", "lora 32", "lora 128", "lora 512", "full"),
        "I2": (*beats("DMA", "lora 32"), *beats("n 1", "lora 32"), *beats("n 16", "DMA", "n 1")),
        "I3": (*beats("n 4", "n 1"), *beats("n 16", "n 4"), *beats("lora 32", "lora 512")),
    }
    curves = {"n": {f"n {n}": float(n) for n in (1, 4, 16)}}
    return tuple(
        Claim(
            claim.id,
            claim.claim,
            claim.paper,
            (Reading("text by CLIP-S", readings[claim.id]), preference),
            curves=curves if claim.id == "I3" else {},
        )
        for claim in own
        if claim.id in readings
    )
