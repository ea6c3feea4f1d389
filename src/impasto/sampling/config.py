"""Settings of `impasto generate`."""

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from impasto.errors import UserError

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class GenerateConfig:
    """Generate images, with or without styles."""

    base: str = "mini-sd3"
    """Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id."""
    components: Path | None = None
    """A diffusers folder for what a .safetensors checkpoint does not hold: tokenisers, text encoders, autoencoder."""
    style: Append[tuple[str, ...]] = ()
    """A style folder, its strength after a colon: runs/neon:0.8; the style's own default strength when not given.
    runs/neon@100:0.8 is the checkpoint of step 100, owner/name:0.8 a style on the Hub (of several files
    owner/name/file.safetensors). May be given several times, or not at all."""
    prompt: Append[tuple[str, ...]] = ()
    """A prompt; may be given several times."""
    prompts: Path | None = None
    """A file with one prompt per line; lines that begin with # are left out. A prompt here or in --prompt may have
    the text that images of A1111 and impasto have as `parameters`: its settings are used where no flag gives them."""
    panels: Append[tuple[str, ...]] = ()
    """Subjects of one multi-panel image, separated by semicolons; may be given several times."""
    letters: Append[tuple[str, ...]] = ()
    """Words to be written in the style of --panel-style; may be given several times."""
    panel_style: str = "a multi-panel comic"
    """The style that panels and letters are asked for in: as in the caption of the style's reference."""
    out: Path = Path("runs/images")
    """Folder of the images, 0000.png on; behind those that are there."""
    replace: bool = False
    """Remove the images and scores of earlier commands in the folder, and number from 0000 again."""
    seed: int = 0
    """Image i starts from seed + i; -1 takes a random seed, which is reported."""
    count: int = 1
    """Images per prompt."""
    steps: int | None = None
    """Sampling steps; as the base's card says when not given."""
    sampler: str | None = None
    """Sampler: default (the base's own), euler, euler-ancestral, ddim, dpm++-2m; the style's own, or as the base's card
    says, when not given. SD3 and FLUX have default and euler."""
    guidance: float | None = None
    """Guidance scale; as the base's card says when not given."""
    temperature: float | None = None
    """Of a base that draws tokens (Muse): randomness of which tokens are kept, falling to 0 over the steps; as the
    base's card says when not given."""
    token_temperature: float | None = None
    """Of a base that draws tokens (Muse): temperature of the softmax that tokens are drawn from; 0 takes the most
    probable one. As the base's card says when not given, else 1."""
    style_guidance: float | None = None
    """Weight by which the styles are amplified against the base; 0 is off. The style's own default when not given, see
    docs/style-guidance.md."""
    base_guidance: float | None = None
    """Weight of the base's own guidance, beside the style's; 0 is off. The style's own default when not given."""
    negative: str | None = None
    """Negative prompt; "style words" takes the words by which the style's captions name it. The style's own default
    when not given."""
    noise_random: float | None = None
    """Of a style that keeps inversion noise: share of its positions that are drawn anew from the image's seed; 0.1 when
    not given."""
    until: float | None = None
    """Of a style that keeps inversion noise: its terminal timestep, 0 to 1000; the style's own when not given, another
    one inverts the kept reference again."""
    alpha: tuple[float, ...] = ()
    """Of a style of two, see `impasto mix`: the second one's share of the noise; of more, the shares of all."""
    beta: tuple[float, ...] = ()
    """The second one's weight in the prompt; of more, the weights of all."""
    size: int | str | None = None
    """Pixels: 512 for a square, 768x1152 for width x height; the base's own when not given."""
    batch: int | None = None
    """Images per forward pass: speed and memory only, the images do not depend on it."""
    guidances: tyro.conf.Suppress[tuple[Any, ...]] = ()
    """Settings of other guidances, see `guidance.GUIDANCES`; their flags are added by the command."""
    quantize: Literal["none", "nf4", "int8", "fp8"] = "none"
    """The base in fewer bits: for a device that does not hold it, or to sample as a style was trained."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    precision: str = "auto"
    """fp32, bf16 or auto (bf16 on CUDA)."""


def parse_size(size: int | str | None) -> tuple[int | None, int | None]:
    """(width, height) of 512 or "768x1152"; the height is None where one side is given. Raises UserError."""
    match = None if size is None else re.fullmatch(r"(\d+)(?:\s*[xX×]\s*(\d+))?", str(size).strip())
    if size is not None and match is None:
        raise UserError(f"size {size!r} must be a side or width x height in pixels, such as 512 or 768x1152")
    return (None, None) if match is None else (int(match[1]), int(match[2]) if match[2] else None)


def with_seed(config: GenerateConfig) -> GenerateConfig:
    """The config with a random seed in place of -1."""
    return replace(config, seed=secrets.randbelow(2**32)) if config.seed == -1 else config
