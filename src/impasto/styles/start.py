"""Where the images of a style start: from the inversion noise of its reference, which its folder keeps.

    z_T = invert(reference, caption) with the style's own weights,
    z(seed) = randomise(mix(z_T of each style, alpha), p)

Noise fits one size and one sampling grid; at another size, number of steps or terminal timestep the kept reference is
inverted again.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from impasto.coerce import check_share
from impasto.data import references
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.guidance.base import Encode
from impasto.inversion import invert, kind_of, log_snr_of, noise_file
from impasto.inversion.mix import mix, randomise
from impasto.inversion.noise_file import InversionNoise
from impasto.noise.random import generator
from impasto.sampling.sample import Sampling
from impasto.styles.defaults import own_sampling
from impasto.styles.parts import NOISE, part_files

RANDOM = 0.1
"""Default share of the positions that are drawn anew from the image's seed."""
Start = Callable[[int], Tensor]
"""Seed -> latents (1, C, h, w), in the denoiser's dtype."""


def reference_file(folder: Path, index: int = 0) -> Path:
    """The copy of reference 0, 1, .. in a style folder."""
    return folder / (f"reference-{index}.png" if index else "reference.png")


def read_noises(folder: Path) -> list[InversionNoise]:
    """The inversion noises of a style folder, [] where it has none. Raises UserError when one is damaged."""
    return [noise_file.read(file) for file in part_files(folder, NOISE)]


def share_weights(share: Sequence[float], n: int, name: str) -> list[float]:
    """Weights of n styles, together 1: equal ones when `share` is empty, (1 - a, a) of one number and two styles, else
    the numbers themselves. Raises UserError for another count, and for numbers that are not shares of 1."""
    for one in share:
        check_share(one, name)
    if not share:
        return [1 / n] * n
    weights = [1 - share[0], share[0]] if len(share) == 1 and n == 2 else list(share)
    if len(weights) != n:
        raise UserError(f"{name} has {len(share)} numbers for {n} styles: give one for each, which add up to 1")
    if abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"the weights of {name} must add up to 1, not {sum(weights):g}")
    return weights


def build_start(
    folder: Path,
    noises: Sequence[InversionNoise],
    family: Family,
    encode: Encode,
    sampling: Sampling,
    random: float = RANDOM,
    alpha: Sequence[float] = (),
) -> Start:
    """The start of images of a style whose weights are on `family.denoiser` and whose tokens `encode` knows.

    sampling: filled in. random: share of the positions that are Gaussian noise of the image's seed, see
    `inversion.mix.randomise`. alpha: shares of several styles, see `share_weights`. What has to be inverted again is so
    at the first call. Raises UserError for noise of another base, a missing reference, and shares that do not fit.
    """
    check_share(random, "noise-random")
    weights = share_weights(alpha, len(noises), "alpha")
    pixels: list[Tensor | None] = []
    assert sampling.size is not None and sampling.steps is not None
    own, shape = (own_sampling(folder).get("until"),), (sampling.size, sampling.height or sampling.size)
    for i, noise in enumerate(noises):
        noise.check_base(family.hash)
        fits = (noise.info.size, noise.info.size, noise.info.steps, *own) == (*shape, sampling.steps, sampling.until)
        pixels.append(None if fits else read_reference(folder, i, sampling).pixels(*shape))

    @cache
    def fitted() -> list[Tensor]:
        return [
            noise.noise if x is None else invert_again(family, x, encode, noise.info.caption, sampling)
            for noise, x in zip(noises, pixels, strict=True)
        ]

    def start(seed: int) -> Tensor:
        z = mix(fitted(), weights, generator(seed, 0, "mix of noises"))
        return randomise(z, random, generator(seed, 0, "noise-random")).to(family.device, family.dtype)

    return start


def read_reference(folder: Path, index: int, sampling: Sampling) -> references.Reference:
    file = reference_file(folder, index)
    if not file.is_file():
        raise UserError(
            f"style {str(folder)!r} keeps no {file.name} to invert again at {sampling.size} px in {sampling.steps} "
            "steps: leave out --size, --steps and --until"
        )
    return references.load(file)


def invert_again(family: Family, pixels: Tensor, encode: Encode, caption: str, sampling: Sampling) -> Tensor:
    """(1, C, h, w), float32, on the CPU: the noise of pixels (1, 3, H, W) along the grid of `sampling`."""
    x = family.encode_image(pixels)
    family.free("vae")  # the pipeline has its own
    height, width = x.shape[-2:]
    levels = family.sampling_levels(sampling.steps or 0, (height, width), sampling.scheduler(family))
    until = None if sampling.until is None else log_snr_of(family, sampling.until)
    with torch.no_grad():
        found = invert(family, x, encode(caption), levels=levels, until=until, refine=kind_of(family).REFINE)
    return found.noise.float().cpu()
