"""Settings of `impasto generate`."""

from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Literal

import tyro

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class GenerateConfig:
    """Draw pictures, with or without styles."""

    base: str = "mini-sd3"
    """Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id."""
    components: Path | None = None
    """A diffusers folder for what a .safetensors checkpoint does not hold: tokenisers, text encoders, autoencoder."""
    style: Append[tuple[str, ...]] = ()
    """A style folder, its strength after a colon: runs/neon:0.8; the style's own default strength when not given. May
    be given several times, or not at all."""
    prompt: Append[tuple[str, ...]] = ()
    """A prompt; may be given several times."""
    prompts: Path | None = None
    """A file with one prompt per line."""
    switch_to: str | None = None
    """A second prompt, used from the log-SNR of --switch-at on; {prompt} in it stands for the first one."""
    switch_at: float | None = None
    """The first prompt is used in the steps whose log-SNR is below this (noisier), the second in all others."""
    panels: Append[tuple[str, ...]] = ()
    """Subjects of one multi-panel picture, separated by semicolons; may be given several times."""
    letters: Append[tuple[str, ...]] = ()
    """Words to be written in the style of --panel-style; may be given several times."""
    panel_style: str = "a multi-panel comic"
    """The style that panels and letters are asked for in: as in the caption of the style's reference."""
    out: Path = Path("runs/images")
    """Folder of the pictures, 0000.png on."""
    seed: int = 0
    """Picture i starts from seed + i."""
    count: int = 1
    """Pictures per prompt."""
    steps: int | None = None
    """Sampling steps; as the base's card says when not given."""
    guidance: float | None = None
    """Guidance scale; as the base's card says when not given."""
    style_guidance: float | None = None
    """Weight by which the styles are amplified against the base; 0 is off. The style's own default when not given, see
    docs/style-guidance.md."""
    base_guidance: float | None = None
    """Weight of the base's own guidance, beside the style's; 0 is off. The style's own default when not given."""
    negative: str | None = None
    """Negative prompt; "style words" takes the words by which the style's captions name it. The style's own default
    when not given."""
    size: int | None = None
    """Pixels, square; the base's own when not given."""
    batch: int | None = None
    """Pictures per forward pass: speed and memory only, the pictures do not depend on it."""
    aligned_to: Path | None = None
    """A picture whose style is taken over without training (StyleAligned)."""
    reference_caption: str = ""
    """What it shows and in what style, in the words of the prompts: "a rocket in unifont style"."""
    aligned_shift: float = log(2)
    """Added to the attention's logits at its tokens: more is nearer to it, 0 is no shift."""
    aligned_scale: float = 1.0
    """Factor on its keys; below 1 for pictures that the base knows by heart."""
    aligned_adain: tuple[str, ...] = ("queries", "keys")
    """What takes its statistics: queries, keys, values."""
    quantize: Literal["none", "nf4", "int8", "fp8"] = "none"
    """The base in fewer bits: for a device that does not hold it, or to draw as a style was trained."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    precision: str = "auto"
    """fp32, bf16 or auto (bf16 on CUDA)."""
