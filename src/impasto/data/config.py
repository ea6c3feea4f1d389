"""Settings of the training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from impasto.coerce import check_numbers
from impasto.errors import UserError

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Reference images and their captions."""

    image: Append[tuple[Path, ...]] = ()
    """A reference image, or a folder of them; may be given several times."""
    caption: Append[tuple[str, ...]] = ()
    """What it shows and in what style: "a rocket in pixel art style". One for each image, or one for all; in folders
    for those without a caption of their own (a .txt beside the image, or metadata.jsonl)."""
    pairs: Path | None = None
    """For distillation without a shared text encoder: a JSONL file, per line an object with `text`, a caption, and
    `teacher_text`, the teacher's caption of the same image. Or `teacher_text` beside `text` in metadata.jsonl."""
    trigger: str = ""
    """What stands for [trigger] in captions: a word or two of your own."""
    caption_prefix: str = ""
    """Put before every caption."""
    caption_dropout: float = 0.0
    """Share of items with an empty caption."""
    repeats: Append[tuple[int, ...]] = ()
    """How often the images of each --image count: one number for each; 1, or N in a folder called N_name."""
    mask: Literal["off", "files", "alpha"] = "off"
    """Loss masks: files (a.mask.png, masks/a.png; white counts) or alpha (what is opaque counts)."""
    buckets: Literal["auto", "on", "off"] = "auto"
    """Keep aspect ratios, in buckets of the same area; off crops squares. auto: on for folders."""
    crops: int = 1
    """Crops of each image that are prepared; one of them is used per step. 1 is the middle only."""
    crop_scale: float | None = None
    """Smallest side of a crop, as a share of the largest; crops of small images are scaled up. When not given .7, and
    nothing is scaled up."""
    flip: bool = False
    """Mirror images half of the time."""
    min_side: int = 0
    """Leave out images whose shorter side has fewer pixels; one line counts them. 0 leaves out none."""
    skip_bad: bool = False
    """Skip images and captions that cannot be used, with a warning each, where a folder would be refused."""
    size: int = 1024
    """Pixels, square; with buckets the area is that of this square."""
    concept_file: Path | None = None
    """A concepts.json of the image (`impasto concepts find`): each concept is a training pair of its own, too."""
    concept_mode: Literal["crop", "mask"] = "crop"
    """What a concept's pair shows: its region (crop), or the whole image with the loss inside the region (mask)."""
    concept_share: float = 0.5
    """Share of the draws that are of a concept, all concepts alike; the other draws are of the whole image."""
    concept_crops: int = 8
    """Crops of each region that are prepared, the first one centred; one of them is used per step."""
    concept_jitter: float = 0.1
    """How far a crop may be from the centre of its region, as a share of the crop's sides."""

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("crops", "size", "concept_crops"), at_least_0=("min_side",))
        if not 0.01 <= self.concept_share <= 1:  # shares are drawn in hundredths
            raise UserError(f"concept_share must be from 0.01 to 1, not {self.concept_share}")
        if self.crop_scale is not None and not 0.1 <= self.crop_scale <= 1:
            raise UserError(f"crop_scale must be from 0.1 to 1, not {self.crop_scale}")
        if self.crop_scale is not None and self.crops == 1:
            raise UserError("crop_scale is of --crops 2 or more, and there is 1: give --crops 8")
        if not 0 <= self.concept_jitter <= 0.5:
            raise UserError(f"concept_jitter must be from 0 to 0.5, not {self.concept_jitter}")
        if self.concept_file and self.concept_mode == "mask" and self.mask != "off":
            raise UserError("concept_mode mask and --mask exclude each other: leave one of them out")
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout must be from 0 to 1, not {self.caption_dropout}")
        if any(count < 1 for count in self.repeats):
            raise UserError(f"repeats must be at least 1, not {min(self.repeats)}")
