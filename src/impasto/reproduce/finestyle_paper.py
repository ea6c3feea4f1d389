"""FineStyle's protocol for users with real weights: prompts in ten styles, CLIP scores of text and style.

    190 prompts of Parti with their superclass ("A cat, animals, in watercolor painting style") x 10 styles x 8 images
    text     cosine of each image's CLIP embedding with its prompt's           decides "text"
    style    cosine of each image's CLIP embedding with the reference's        decides "style"
    both     harmonic mean of the two, per cell
    leak     cosine with the reference's unprompted concept phrases, mean over phrases

Prompts and references cannot be redistributed. `--references DIR` holds prompts.txt, a prompt per line without its
style ("A cat, animals"), and styles.json:

    {"watercolor": {"image": "house.png", "caption": "a house and a tree in watercolor painting style",
                    "words": "watercolor painting"}, ...}

A unit is one style with one seed; `smoke` is one style, 4 prompts and one seed. A style is trained once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.data import references
from impasto.data.concepts import parse_caption
from impasto.errors import UserError
from impasto.evaluation import Encoder, clip
from impasto.evaluation.samples import read_folder
from impasto.files import read_object
from impasto.reproduce.claims import Arm, Claim, Compare, Measure, Reading, more, no_less
from impasto.reproduce.clip_world import CLIP, ClipWorld
from impasto.reproduce.finestyle_jobs import guidance_of, render
from impasto.reproduce.folder_jobs import trained
from impasto.reproduce.runner import BaseSpec

PROMPTS, STYLES = "prompts.txt", "styles.json"
KEYS = ("image", "caption", "words")
SIZES = {"smoke": (1, 4, 1), "full": (10, 190, 8)}
"""Styles, prompts, seeds."""
MEASURES = {
    "style": Measure("clip_style", margin=0.01),
    "text": Measure("clip_text", margin=0.005),
    "leak": Measure("clip_leak", margin=0.005),
    "both": Measure("harmonic_mean", margin=0.005),
}
RECIPE = "finestyle-kv"


@dataclass(frozen=True)
class PromptStyleWorld(ClipWorld):
    """See `runner.World`. folder: prompts.txt and styles.json with its images. clip: a folder, hub id or `Encoder`."""

    folder: Path
    clip: Encoder | Path | str = CLIP
    name: str = "paper"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    sizes = tuple(SIZES)
    undecided = ("smoke",)
    to_reference = True
    shown = ("clip_style", "clip_text", "harmonic_mean", "clip_leak")

    @property
    def jobs(self) -> Mapping[str, Any]:
        return {"finestyle": finestyle_job, "whole": whole_job, "alone": alone_job}

    def describe(self) -> str:
        """One paragraph for the page."""
        size = f"{len(read_prompts(self.folder))} prompts in {len(read_styles(self.folder))} styles"
        return (
            f"The paper's protocol: {size} (`smoke`: 4 prompts in one), up to 8 images each; CLIP scores of text and "
            "style, their harmonic mean, and the cosine with the reference's concepts."
        )

    def ready(self, cells: str) -> bool:
        return (self.folder / STYLES).is_file()

    def units(self, cells: str, where: str) -> dict[str, dict[str, Any]]:
        how_many, prompts, seeds = SIZES[cells]
        styles = dict(list(read_styles(self.folder).items())[:how_many])
        return {
            f"{name}, {seed}": {
                "style": name,
                "reference": style["image"],
                "reference_sha256": references.load(self.folder / style["image"]).sha256,
                "caption": style["caption"],
                "words": style["words"],
                "prompts": [f"{text}, in {style['words']} style" for text in read_prompts(self.folder)[:prompts]],
                "seed": seed,
            }
            for name, style in styles.items()
            for seed in range(seeds)
        }

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return references.load(self.folder / spec["reference"]).sha256

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        return references.load(self.folder / spec["reference"]).image

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        assert reference is not None
        phrases = list(parse_caption(spec["caption"], spec["words"]).things)
        images = self._clip.images([sample.image for sample in read_folder(folder)])
        texts, concepts = self._clip.texts(spec["prompts"]), self._clip.texts(phrases)
        assert texts is not None and concepts is not None  # checked by `instruments`
        text = clip.clip_t(images, texts).mean().item()
        style = clip.clip_i_reference(images, self._clip.images([references.load(reference).image])).mean().item()
        both = 2 * text * style / (text + style) if min(text, style) > 0 else 0.0
        leak = (images @ concepts.T).mean().item()
        return {"clip_text": text, "clip_style": style, "harmonic_mean": both, "clip_leak": leak}


def read_prompts(folder: Path) -> list[str]:
    """The lines of prompts.txt. Raises UserError without any."""
    file = folder / PROMPTS
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text ({error}): write a prompt per line") from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"{file} has no prompt: write one per line, without its style")
    return prompts


def read_styles(folder: Path) -> dict[str, dict[str, str]]:
    """{name: {"image", "caption", "words"}} of styles.json. Raises UserError on a style without them."""
    file = folder / STYLES
    try:
        styles = read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): write {{name: {{image, caption, words}}}}") from None
    for name, style in styles.items():
        missing = [key for key in KEYS if not isinstance(style, dict) or not isinstance(style.get(key), str)]
        if missing:
            raise UserError(f"{file}: the style {name!r} lacks {', '.join(missing)}")
        if not (folder / style["image"]).is_file():
            raise UserError(f"{file}: {style['image']!r} of the style {name!r} is not in {str(folder)!r}")
    return styles


def finestyle_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Train by FineStyle, with the base's default finder."""
    train_and_render(spec, place, folder, reference, {"method.style_words": spec["words"]})


def whole_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Train on the whole image."""
    train_and_render(spec, place, folder, reference, {})


def train_and_render(
    spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None, more: Mapping[str, Any]
) -> None:
    """Train once per style (seed 0), then generate by the arm's `weights`."""
    assert reference is not None
    own = {name: spec[name] for name in ("caption", "words", "reference_sha256")}
    own["settings"] = spec["arm"]["settings"]
    style = trained({**spec, "seed": 0}, place, own, {"caption": (spec["caption"],), **more}, reference)
    render(spec, place, folder / "images.part", (f"{style}:1",), guidance_of(spec["arm"], spec))


def alone_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """The base alone."""
    render(spec, place, folder / "images.part", ())


def recipe(what: str, how: str, settings: Mapping[str, Any], weights: Any) -> Arm:
    """An arm of the recipe finestyle-kv. weights: a preset, or None for ordinary guidance."""
    options = {} if weights is None else {"weights": weights}
    return Arm(what, settings, how=how, options=options, where="prompts", recipe=RECIPE)


WHOLE = {"method": "fit"}
LORA = {"method": "fit", "adapter": "lora", "noise": "uniform"}
ARMS: dict[str, Arm] = {
    "base": Arm("the base alone", how="alone", where="prompts"),
    "plain": recipe("LoRA, t ~ U(0, 1), ordinary guidance", "whole", LORA, None),
    "styledrop": recipe("the same LoRA by StyleDrop's guidance", "whole", LORA, "styledrop"),
    "whole": recipe("keys and values, the whole image alone", "whole", WHOLE, "finestyle"),
    "finestyle": recipe("FineStyle: keys and values, data scaling, its guidance", "finestyle", {}, "finestyle"),
}


def leaks_less(arm: str, other: str) -> Compare:
    """`arm` leaks less than `other`: holds above 0, is refuted below the margin."""
    return Compare(f"{arm} leaks less than {other}", {other: 1.0, arm: -1.0}, "leak")


def claims(own: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """F1, F2 and F8 by CLIP. own: the claims of the small world, for their sentences and the paper's numbers."""
    rivals = ("plain", "styledrop")
    readings = {
        "F1": (*(leaks_less("finestyle", o) for o in rivals), *(no_less("finestyle", o, "style") for o in rivals)),
        "F2": (leaks_less("finestyle", "whole"), no_less("finestyle", "whole")),
        "F8": tuple(more("finestyle", other, "both") for other in ("base", *rivals)),
    }
    return tuple(
        Claim(claim.id, claim.claim, claim.paper, (Reading("by CLIP", readings[claim.id]),))
        for claim in own
        if claim.id in readings
    )


def make_world(folder: Path | None, clip_name: str | None, dino: str | None) -> PromptStyleWorld:
    """The paper's protocol. Raises UserError without the folder of prompts and styles."""
    if folder is None or dino:
        raise UserError(
            f"--protocol paper needs --references DIR with {PROMPTS} and {STYLES} (prompts, and styles with image, "
            "caption and words); it has no --dino"
        )
    read_prompts(folder)
    read_styles(folder)
    return PromptStyleWorld(folder, clip_name or CLIP)
