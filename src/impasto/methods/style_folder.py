"""The style folder of a method that trains in folders inside it: what it takes over from them, and its previews."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from impasto.config import TrainConfig
from impasto.files import atomic
from impasto.generation import generate
from impasto.sampling.png import save_png
from impasto.sampling.sample import Sampling
from impasto.styles.parts import Part, read_parts


def copy_parts(trained: Path, out: Path) -> list[Part]:
    """Copy the files of a style's parts; returns the parts, to be listed by `write_parts`."""
    parts = read_parts(trained)
    for part in parts:
        with atomic(out / part.file) as file:
            shutil.copyfile(trained / part.file, file)
    return parts


def write_previews(config: TrainConfig, prompts: Sequence[str]) -> list[str]:
    """Images of the finished style by `generate`, unless the config wants none; their names in its folder."""
    if not config.log.preview:
        return []
    kind = {"device": config.device, "precision": config.precision, "components": config.components}
    sampling = Sampling(size=config.data.size)
    images = generate(config.base, prompts, styles=[str(config.out)], seed=config.seed, sampling=sampling, **kind)
    names = []
    for i, (image, info) in enumerate(images):
        names.append(f"previews/{i}.png")
        save_png(image, info, config.out / names[-1])
    return names
