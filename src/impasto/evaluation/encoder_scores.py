"""Scores of images by one encoder (`evaluation.encoders`), whatever it is: the same names for all.

    reference        cosine with the reference (mean over several): CLIP-I, DINO, CSD; the distance of LPIPS
    text             cosine with the prompt: CLIP-T
    clip_s           2.5 max(text, 0) (Hessel et al. 2021)
    reward           ImageReward; PickScore, raw; the concept judge's log-odds
    reward_minus_21  PickScore - 21, as some papers print it
    diversity        mean distance to the other images of the same prompt: 1 - cosine, or the distance

A score whose inputs are missing (no prompt, no reference, a single image of a prompt) is None.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impasto.evaluation.encoders import ENCODERS, Distance, Encoder, Instrument, Reward
from impasto.evaluation.encoders.base import batches
from impasto.evaluation.encoders.pickscore import OFFSET
from impasto.evaluation.samples import Sample
from impasto.evaluation.scores import Score
from impasto.evaluation.spread import summarise

Row = dict[str, float | None]
CLIP_S = 2.5
SCORES: dict[str, Score] = {
    "reference": Score("reference", "cosine with the reference, of LPIPS the distance"),
    "text": Score("text", "cosine with the prompt"),
    "clip_s": Score("CLIP-S", "2.5 max(cosine with the prompt, 0)"),
    "reward": Score("reward", "the encoder's own score of image and prompt"),
    "reward_minus_21": Score("reward - 21", "the same less 21"),
    "diversity": Score("diversity", "mean distance to the other images of the prompt"),
}


class Images(Sequence[Image.Image]):
    """The images of samples, each read from disk when it is taken."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [sample.image for sample in self.samples[index]]
        return self.samples[index].image


def score(
    instrument: Instrument,
    images: Sequence[Image.Image],
    prompts: Sequence[str | None],
    references: Sequence[Image.Image] = (),
) -> list[Row]:
    """A row of scores per image: those of the encoder's entry in `ENCODERS` (all that its kind has, for another name).

    images: PIL images, or `Images`; taken a batch at a time. prompts: one each, None or "" where unknown. references:
    of any sizes.
    """
    if isinstance(instrument, Encoder):
        found = embedded(instrument, images, prompts, references)
    elif isinstance(instrument, Reward):
        found = rewarded(instrument, images, prompts)
    elif isinstance(instrument, Distance):
        found = measured(instrument, images, prompts, references)
    else:
        raise TypeError(f"{type(instrument).__name__} is no encoder")
    names = ENCODERS[instrument.name].scores if instrument.name in ENCODERS else tuple(found)
    return [{name: found[name][i] for name in names} for i in range(len(images))]


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """{score: {"mean", "interval" (95 %, [low, high]), "n"}} over rows; mean and interval None where unknown."""
    names = rows[0] if rows else ()
    found = {name: summarise([row[name] for row in rows]) for name in names}
    return {name: {"mean": mean, "interval": interval, "n": n} for name, (mean, interval, n) in found.items()}


def describe(instrument: Instrument) -> dict[str, Any]:
    """What a score names: {"source", "version", "about"}."""
    about = ENCODERS[instrument.name].about if instrument.name in ENCODERS else ""
    return {"source": instrument.source, "version": instrument.version, "about": about}


def embedded(
    encoder: Encoder, images: Sequence[Image.Image], prompts: Sequence[str | None], references: Sequence[Image.Image]
) -> dict[str, list[Any]]:
    vectors = torch.cat([encoder.images(batch) for batch in batches(images)])
    found: dict[str, list[Any]] = {
        "reference": [None] * len(images),
        **text_scores(encoder, vectors, prompts),
    }
    if references:
        found["reference"] = (vectors @ encoder.images(list(references)).T).mean(1).tolist()
    found["diversity"] = [None] * len(images)
    for group in by_prompt(prompts):
        apart = 1 - vectors[group] @ vectors[group].T
        for i, row in zip(group, apart, strict=True):
            found["diversity"][i] = ((row.sum() - (1 - vectors[i].square().sum())) / (len(group) - 1)).item()
    return found


def text_scores(encoder: Encoder, vectors: Tensor, prompts: Sequence[str | None]) -> dict[str, list[Any]]:
    """ "text" and "clip_s"; None without a text tower, or a prompt."""
    known = [i for i, prompt in enumerate(prompts) if prompt]
    texts = encoder.texts(unique := sorted({str(prompts[i]) for i in known})) if known else None
    found: list[float | None] = [None] * len(prompts)
    if texts is not None:
        for i in known:
            found[i] = (vectors[i] @ texts[unique.index(str(prompts[i]))]).item()
    return {"text": found, "clip_s": [None if value is None else CLIP_S * max(value, 0.0) for value in found]}


def rewarded(reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str | None]) -> dict[str, list[Any]]:
    known = [i for i, prompt in enumerate(prompts) if prompt]
    values: list[float | None] = [None] * len(images)
    for batch in batches(known):
        found = reward.rewards([images[i] for i in batch], [str(prompts[i]) for i in batch])
        for i, value in zip(batch, found.tolist(), strict=True):
            values[i] = value if value == value else None
    return {"reward": values, "reward_minus_21": [None if value is None else value - OFFSET for value in values]}


def measured(
    distance: Distance, images: Sequence[Image.Image], prompts: Sequence[str | None], references: Sequence[Image.Image]
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"reference": [None] * len(images), "diversity": [None] * len(images)}
    if references:
        for i, image in enumerate(images):
            found["reference"][i] = distance.distances([image] * len(references), list(references)).mean().item()
    for group in by_prompt(prompts):
        shown = [images[i] for i in group]
        apart = torch.zeros(len(group), len(group))
        for a in range(len(group) - 1):
            apart[a, a + 1 :] = distance.distances([shown[a]] * (len(group) - 1 - a), shown[a + 1 :])
        for i, row in zip(group, apart + apart.T, strict=True):
            found["diversity"][i] = (row.sum() / (len(group) - 1)).item()
    return found


def by_prompt(prompts: Sequence[str | None]) -> list[list[int]]:
    """The positions of images of one prompt, of each prompt that has several."""
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt:
            groups.setdefault(prompt, []).append(i)
    return [group for group in groups.values() if len(group) > 1]
