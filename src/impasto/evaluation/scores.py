"""The scores by name, and their means over images with 95 % intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from impasto.evaluation.spread import summarise


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        title: Its name in tables.
        what: Its definition.
        better: "higher", "lower", or "" if neither.
        percent: Shown as a percentage.
        measure: Of a score of the pixels alone, "module:function" of pixels (n, 3, 128, 128) in [0, 1] -> values (n,);
            the scorer computes the others.
    """

    title: str
    what: str
    better: str = "higher"
    percent: bool = False
    measure: str = ""


SCORES: dict[str, Score] = {
    "style_accuracy": Score(
        "style accuracy", "share whose most probable style of 19 is the expected one", percent=True
    ),
    "kind_accuracy": Score(
        "kind accuracy", "share whose most probable style has the expected coarse kind", percent=True
    ),
    "style_probability": Score("style probability", "mean probability of the expected style", percent=True),
    "concept_top1": Score("concept top-1", "share whose expected concept ranks first among 1,194", percent=True),
    "concept_top5": Score("concept top-5", "share whose expected concept is among the first five", percent=True),
    "leakage": Score(
        "leakage",
        "share judged to show the reference's object although another is prompted",
        "lower",
        percent=True,
    ),
    "style_cosine": Score("style features", "cosine of the style judge's features with the reference's"),
    "clip_i_reference": Score("CLIP-I, reference", "cosine of image embeddings with the reference's"),
    "dino_i_reference": Score("DINO, reference", "cosine of another encoder's embeddings with the reference's"),
    "clip_i_style": Score("CLIP-I, true style", "mean cosine with the true images of other concepts in the style"),
    "clip_i_paired": Score("CLIP-I, true picture", "cosine with the true image of the same concept in the style"),
    "ssim": Score("SSIM, true picture", "structural similarity (luma, 11 x 11 Gaussian) with the true image"),
    "mse": Score("MSE, true picture", "mean squared pixel error in [0, 1] against the true image", "lower"),
    "palette": Score("palette error", "Wasserstein-1 distance of channel values to the true image's, 0-255", "lower"),
    "ground": Score("ground error", "mean absolute difference of the border from the true image's, 0 to 255", "lower"),
    "clip_t": Score("CLIP-T", "cosine of the image's embedding with its prompt's"),
    "near_copy": Score("near copies", "share that repeats the reference's composition", "lower", percent=True),
}


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{score: mean or None, ..., "interval": {score: [low, high] or None}, "n": {score: images known}} over rows."""
    summary = {name: summarise([row.get(name) for row in rows]) for name in SCORES}
    result: dict[str, Any] = {name: mean for name, (mean, _, _) in summary.items()}
    result["interval"] = {name: interval for name, (_, interval, _) in summary.items()}
    result["n"] = {name: n for name, (_, _, n) in summary.items()}
    return result
