"""InstaStyle's own protocol (section 4), for users with Stable Diffusion's weights and 60 references.

    60 references, each with an object and style words  x  the 100 classes of CIFAR-100, one image each
    style     CLIP ViT-B/32, cosine of each image with its reference                     decides "style"
    content   CLIP ViT-B/32, cosine of each image with "A {class}"                       decides "text"

The variant of CLIP is not stated there. The table of its references is not available to us: `--references DIR` has
images 00.png on and, to say what they show, captions.txt with lines `FILE: object | style words`; without it the files
are called by the numbers of the prompt set instastyle-references, a list of our own. A cell is one arm on one
reference; `smoke` is 2 references x 4 classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from impasto.data import references
from impasto.data.prompt_sets import read_prompts
from impasto.errors import UserError
from impasto.evaluation import Encoder, clip
from impasto.evaluation.samples import read_folder
from impasto.families.base import Family
from impasto.methods.config import InstaStyle
from impasto.methods.instastyle import fill, sampler_of
from impasto.reproduce.claims import Arm, Claim, Measure, Reading, more
from impasto.reproduce.clip_world import CLIP, ClipWorld
from impasto.reproduce.instastyle_jobs import FORMS
from impasto.reproduce.paper import by_number, file_hash

SIZES = {"smoke": (2, 4), "full": (60, 100)}
"""References, classes."""
MEASURES = {"style": Measure("clip_i_reference", margin=0.01), "text": Measure("clip_t", margin=0.005)}
RECIPE = "instastyle-paper"
WORDS = {"adapter": "lora", "rank": 4, "lr": 1e-5}


class Captioned(NamedTuple):
    """One reference."""

    file: Path
    thing: str
    words: str


@dataclass(frozen=True)
class ReferenceWorld(ClipWorld):
    """See `runner.World`. folder: the references. clip: a folder, a hub id or an `Encoder`."""

    folder: Path
    clip: Encoder | Path | str = CLIP
    name: str = "paper"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    jobs: Mapping[str, Any] = field(default_factory=dict)
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = True
    shown = ("clip_i_reference", "clip_t")

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "The paper's protocol: 60 references, 100 CIFAR-100 classes, one image each (`smoke`: 2 and 4); style is "
            f"CLIP's cosine with the reference, content with the text 'A {{class}}', by {self.clip}."
        )

    def ready(self, cells: str) -> bool:
        return self.folder.is_dir() and len(read_references(self.folder)) >= SIZES[cells][0]

    def sampling(self, family: Family) -> dict[str, Any]:
        """The method's own sampling on a base."""
        method = fill(InstaStyle(), family)
        found = {"steps": method.steps, "guidance": method.guidance, "fixed_point": method.fixed_point}
        return found | ({"sampler": sampler} if (sampler := sampler_of(family)) else {})

    def units(self, cells: str, where: str) -> dict[str, dict[str, Any]]:
        count, classes = SIZES[cells]
        known = read_references(self.folder)
        if len(known) < count and cells != "full":
            raise UserError(f"{self.folder} has {len(known)} references, and {cells} needs {count}")
        names, (form, _) = read_classes()[:classes], FORMS["paper"]
        return {
            one.file.name: {
                "style": one.words,
                "words": one.words,
                "reference": one.file.name,
                "reference_sha256": file_hash(one.file),
                "thing": one.thing,
                "caption": form.format(one.thing, one.words),
                "form": "paper",
                "plain": names,
                "prompts": [form.format(name, one.words) for name in names],
                "seed": 0,
            }
            for one in known[:count]
        }

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return file_hash(self.folder / spec["reference"])

    def picture(self, spec: Mapping[str, Any]) -> Image.Image:
        return references.load(self.folder / spec["reference"]).image

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        """Means over the images of `folder`."""
        images = self._clip.images([sample.image for sample in read_folder(folder)])
        texts = self._clip.texts([FORMS["paper"][1].format(name) for name in spec["plain"]])
        assert texts is not None  # checked by `instruments`
        origin = self._clip.images([references.load(self.folder / spec["reference"]).image])
        return {
            "clip_i_reference": clip.clip_i_reference(images, origin).mean().item(),
            "clip_t": clip.clip_t(images, texts).mean().item(),
        }


@cache
def read_classes() -> list[str]:
    """The 100 classes of CIFAR-100."""
    return [item.content for item in read_prompts("cifar-100").items]


def read_references(folder: Path) -> list[Captioned]:
    """The references of a folder, by captions.txt, else by number. Raises UserError on a line or a file that does not
    fit."""
    if not folder.is_dir():
        raise UserError(f"--references {str(folder)!r} is not a folder: give one of images with captions.txt")
    captions = folder / "captions.txt"
    if not captions.is_file():
        own = [(item.content, str(item.style)) for item in read_prompts("instastyle-references").items]
        return [Captioned(file, *own[i]) for i, file in sorted(by_number(folder).items()) if i < len(own)]
    found = []
    for number, line in enumerate(captions.read_text(encoding="utf-8-sig").splitlines(), 1):
        name, _, caption = line.partition(":")
        thing, _, words = (part.strip() for part in caption.partition("|"))
        if not line.strip():
            continue
        if not thing or not words:
            raise UserError(f"{captions}, line {number}: write FILE: object | style words")
        if not (folder / name.strip()).is_file():
            raise UserError(f"{captions}, line {number}: {name.strip()!r} is not in the same folder")
        found.append(Captioned(folder / name.strip(), thing, words))
    return found


def noise(what: str, **options: Any) -> Arm:
    return Arm(what, how="noise", options=options)


def refined(what: str, **options: Any) -> Arm:
    return Arm(what, WORDS, how="instastyle", options=options, recipe=RECIPE)


ARMS: dict[str, Arm] = {
    "full": refined("InstaStyle"),
    "no noise": refined("refined, a Gaussian noise per image", start="gaussians"),
    "inversion": noise("no refinement"),
    "gaussians": noise("neither: the base, the style in words", start="gaussians"),
}


def claims(own: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """N2 by CLIP's scores. own: the claims of the small world, for their sentences and the paper's order."""
    readings = (
        Reading("style", tuple(more("full", arm) for arm in ("no noise", "inversion", "gaussians"))),
        Reading("content", (more("full", "inversion", "text"),)),
    )
    return tuple(replace(claim, readings=readings, sheet=tuple(ARMS)) for claim in own if claim.id == "N2")
