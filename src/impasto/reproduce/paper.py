"""The paper's protocol, for users with the weights and the references (arXiv 2411.14793, appendix A).

    18 references of StyleDrop (arXiv 2306.00983, table S4)  x  23 subjects  x  2 images = 828 images per arm
    DINO    ViT-S/16, cosine of each image's CLS token with the reference's      decides "style"
    CLIP-I  ViT-B/32, cosine of each image's embedding with the reference's
    CLIP-T  ViT-B/32, cosine of each image's embedding with its prompt's         decides "text"

A cell is one arm on one reference: the means over its 46 images. `smoke` is 3 references x 3 subjects x 1 image.
The references cannot be redistributed: `--references DIR` names a folder with files 00.png to 17.png (any image
format), or with a captions.txt that has a line `FILE: content | style` for each.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.data import references
from impasto.data.companions import SUFFIXES
from impasto.data.prompt_sets import read_prompts
from impasto.errors import UserError
from impasto.evaluation import Encoder, clip
from impasto.evaluation.samples import read_folder
from impasto.reproduce.claims import Measure, Unit
from impasto.reproduce.clip_world import CLIP, ClipWorld, load

DINO = "facebook/dino-vits16"
STYLES: tuple[tuple[str, str], ...] = tuple(
    (item.content, str(item.style)) for item in read_prompts("styledrop-references").items
)
"""Content and style phrase of the 18 references, in the order of their numbers."""
SUBJECTS = tuple(item.content for item in read_prompts("style-friendly-subjects").items)
SIZES = {"smoke": (3, 3, 1), "full": (18, 23, 2)}
"""References, subjects, images per subject."""
MEASURES = {"style": Measure("dino", margin=0.02), "text": Measure("clip_t", margin=0.01)}


@dataclass(frozen=True)
class PaperWorld(ClipWorld):
    """See `runner.World`. clip, dino: a folder, a hub id or an `Encoder`. limits: fewer references and subjects."""

    folder: Path
    clip: Encoder | Path | str = CLIP
    dino: Encoder | Path | str = DINO
    name: str = "paper"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    limits: tuple[int, int] = (len(STYLES), len(SUBJECTS))
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = True
    jobs: Mapping[str, Any] = field(default_factory=dict)
    shown = ("dino", "clip_i", "clip_t")
    loaded = ("_clip", "_dino")

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "The paper's protocol: 18 StyleDrop references, 23 subjects, 2 pictures each (`smoke`: 3, 3, 1); DINO and "
            f"CLIP-I to the reference, CLIP-T to the prompt. Encoders: {name_of(self.clip)}, {name_of(self.dino)}."
        )

    def ready(self, cells: str) -> bool:
        """Whether the references of a size are there."""
        try:
            find(self.folder, min(SIZES[cells][0], self.limits[0]))
        except UserError:
            return False
        return True

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        how_many, subjects, count = SIZES[cells]
        files = find(self.folder, min(how_many, self.limits[0]))
        return {
            f"{index:02d} {STYLES[index][0]}, {STYLES[index][1]}": {
                "style": STYLES[index][1],
                "reference": index,
                "reference_sha256": file_hash(file),
                "caption": f"{STYLES[index][0]} in {STYLES[index][1]}",
                "prompts": [f"{s} in {STYLES[index][1]}" for s in SUBJECTS[: min(subjects, self.limits[1])]],
                "count": count,
                "seed": 0,
            }
            for index, file in files.items()
        }

    def instruments(self) -> dict[str, Any]:
        """Hashes of the encoders. Raises UserError when the encoder `clip` has no text tower."""
        return {**super().instruments(), "dino": self._dino.hash}

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return file_hash(self._file(spec))

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        return references.load(self._file(spec)).image

    def _file(self, spec: Mapping[str, Any]) -> Path:
        return find(self.folder, spec["reference"] + 1)[spec["reference"]]

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        """Means over the images of `folder`."""
        assert reference is not None
        samples = read_folder(folder)
        images, origin = [s.image for s in samples], [references.load(reference).image]
        embedded, texts = self._clip.images(images), self._clip.texts([s.prompt or "" for s in samples])
        assert texts is not None  # checked by `instruments`
        features = self._dino.images(images)
        return {
            "dino": clip.clip_i_reference(features, self._dino.images(origin)).mean().item(),
            "clip_i": clip.clip_i_reference(embedded, self._clip.images(origin)).mean().item(),
            "clip_t": clip.clip_t(embedded, texts).mean().item(),
        }

    @cached_property
    def _dino(self) -> Encoder:
        return load(self.dino)


def name_of(encoder: Encoder | Path | str) -> str:
    return encoder.name if isinstance(encoder, Encoder) else str(encoder)


def find(folder: Path, count: int) -> dict[int, Path]:
    """{number: file} of the first `count` references. Raises UserError that lists the missing ones."""
    if not folder.is_dir():
        raise UserError(f"--references {str(folder)!r} is not a folder: give that of the {len(STYLES)} references")
    captions = folder / "captions.txt"
    found = by_caption(captions) if captions.is_file() else by_number(folder)
    missing = [index for index in range(count) if index not in found]
    if missing:
        names = "; ".join(f"{i:02d} ({STYLES[i][0]} | {STYLES[i][1]})" for i in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{folder} lacks the references {names}{more}: name the files by these numbers, or write a captions.txt"
        )
    return {index: found[index] for index in range(count)}


def by_number(folder: Path) -> dict[int, Path]:
    """{number: image} of files named by a number. Raises UserError when two have the same."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not re.fullmatch(r"\d+", path.stem) or path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if (other := found.setdefault(int(path.stem), path)) != path:
            raise UserError(f"{folder}: {other.name} and {path.name} have the same number: keep one of them")
    return found


def by_caption(file: Path) -> dict[int, Path]:
    """{number: image} by the lines `FILE: content | style` of a captions file. Raises UserError on a line that is not
    one of the 18, and when two lines name the same."""
    found: dict[int, Path] = {}
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        name, _, caption = line.partition(":")
        content, _, style = (part.strip() for part in caption.partition("|"))
        match = [
            i
            for i, (c, s) in enumerate(STYLES)
            if c == content and s.removesuffix(" style") == style.removesuffix(" style")
        ]
        if not match:
            raise UserError(
                f"{file}, line {number}: {caption.strip()!r} is not one of StyleDrop's {len(STYLES)} references"
            )
        if not (file.parent / name.strip()).is_file():
            raise UserError(f"{file}, line {number}: {name.strip()!r} is not in the same folder")
        if (other := found.setdefault(match[0], file.parent / name.strip())) != file.parent / name.strip():
            raise UserError(f"{file}, line {number}: {other.name} is that reference already: keep one of them")
    return found


@cache
def file_hash(file: Path) -> str:
    """sha256 of an image file. Raises UserError when it cannot be read as an image."""
    return references.load(file).sha256
