"""Inverting a reference image: the noise from which its base generates it, and the reconstruction from that noise.

    z_T = invert(encode(image), caption),    reconstruction = decode(sample(z_T, caption))

both conditional only (InstaStyle, stage 1). `impasto.inversion` has the mathematics.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import PngImagePlugin
from torch import Tensor

from impasto.bases import loader
from impasto.data import references
from impasto.errors import UserError
from impasto.families.base import Condition, Family, check_size
from impasto.files import atomic, writable_folder
from impasto.inversion import Trajectory, invert, kind_of, sample
from impasto.inversion.noise_file import NOISE, InversionNoise, NoiseInfo, write
from impasto.inversion.snr import correlation, paper_snr, snr_of_correlation
from impasto.noise.schedule import RectifiedFlow, VariancePreserving
from impasto.sampling.png import read_png_metadata
from impasto.sampling.sample import VERSION, as_image

RECONSTRUCTION = "reconstruction.png"
TIMESTEPS = 1000  # of `until`: a rectified flow's noise share times this
POOR = 25.0  # decibels


def invert_image(
    base: str,
    image: Path,
    caption: str,
    *,
    out: Path | None = None,
    steps: int = 50,
    until: float | None = None,
    refine: int = 0,
    size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    components: Path | None = None,
) -> dict[str, Any]:
    """Write `noise.safetensors` and `reconstruction.png` to `out` (runs/inverted/<name of the image>).

    until: terminal timestep, 0 to 1000 (of a rectified flow, 1000 times the noise share); the grid's noisiest level
    that is not noisier is the last one. None for the whole grid. refine: fixed-point iterations of each step. size:
    pixels, square, the base's own by default: the middle square of the image, resized.

    Returns the files, the terminal level, the reconstruction error in dB (PSNR of the decoded latents, so that the
    autoencoder's own error does not count), the correlation of noise and latents with the SNR that follows from it, and
    the paper's SNR of an inversion by single timesteps to that level, None for a rectified flow. Warns when the
    reconstruction error is below 25 dB. Raises UserError on bad input.
    """
    image = Path(image)
    if not caption.strip():
        raise UserError("the caption is empty: say what the image shows and in what style, 'a cat in neon sign style'")
    if refine < 0:
        raise UserError(f"refine must be 0 or more, not {refine}")
    family = loader.load(base, device=device, precision=precision, components=components)
    kind_of(family)
    size = int(family.card["size"]) if size is None else size
    check_size(size, family)
    terminal = None if until is None else log_snr_of(family, until)
    reference = references.read(image, size)
    out = Path("runs/inverted") / image.stem if out is None else out
    check_target(out / RECONSTRUCTION)
    writable_folder(out)

    cond = family.encode_prompt([caption])
    family.free("encoders")
    x = family.encode_image(reference.pixels(size))
    found = invert(family, x, cond, steps, until=terminal, refine=refine)
    back = reconstruct(family, found, cond)
    decibels = measure_reconstruction(family, x, back, refine, steps)
    info = NoiseInfo(family.hash, size, steps, caption, reference.sha256)
    write(out / NOISE, InversionNoise.of(found, info))
    save_image(back, out / RECONSTRUCTION, {"prompt": caption, "base": base, "base_hash": family.hash, "steps": steps})
    rho, level = correlation(found.noise, x), found.log_snr[-1]
    return {
        "out": str(out),
        "noise": NOISE,
        "reconstruction": RECONSTRUCTION,
        "size": size,
        "steps": len(found.log_snr) - 1,
        "timestep": round(timestep_of(family, level), 2),
        "log_snr": level.item(),
        "decibels": round(decibels, 2),
        "correlation": round(rho, 4),
        "snr_measured": round(snr_of_correlation(rho), 5),
        "snr_paper": paper_snr_until(family, level),
    }


def measure_reconstruction(
    family: Family, latents: Tensor, reconstruction: Tensor, refine: int, steps: int, flag: str = "--refine"
) -> float:
    """PSNR in dB of the reconstruction (1, 3, H, W) from the decoded latents; warns below 25 dB.

    flag: sets `refine`.
    """
    decibels = psnr(reconstruction, family.decode(latents))
    if decibels < POOR:
        warnings.warn(
            f"the reconstruction is {decibels:.1f} dB from the image, below {POOR:g}: {flag} {refine + 2}, or more "
            f"steps than {steps}, bring it nearer",
            stacklevel=3,
        )
    return decibels


def reconstruct(family: Family, trajectory: Trajectory, condition: Condition) -> Tensor:
    """Pixels (1, 3, H, W), nominally in [-1, 1], sampled from the trajectory's noise, conditional only."""
    return family.decode(sample(family, trajectory.noise, trajectory.log_snr, condition))


def log_snr_of(family: Family, timestep: float) -> float:
    """The log-SNR of a timestep of 0 to 1000. Raises UserError outside of the base's own."""
    schedule = family.schedule
    last = len(schedule.levels) - 1 if isinstance(schedule, VariancePreserving) else TIMESTEPS
    if not 0 < timestep <= last:
        raise UserError(f"until must be a timestep above 0 and up to {last} for this base, not {timestep:g}")
    own = schedule if isinstance(schedule, VariancePreserving) else RectifiedFlow(TIMESTEPS)
    return own.log_snr(torch.tensor(timestep, dtype=torch.float64)).item()


def timestep_of(family: Family, level: Tensor) -> float:
    """The inverse of `log_snr_of`."""
    own = family.schedule if isinstance(family.schedule, VariancePreserving) else RectifiedFlow(TIMESTEPS)
    return own.timestep(level).item()


def paper_snr_until(family: Family, level: Tensor) -> float | None:
    """`paper_snr` of a step per timestep up to the one of `level`; None for a rectified flow."""
    if not isinstance(family.schedule, VariancePreserving):
        return None
    last = math.ceil(timestep_of(family, level) - 1e-3)
    return round(paper_snr(torch.sigmoid(family.schedule.levels[: last + 1])), 6)


def psnr(one: Tensor, two: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]; inf where they are equal."""
    error = (one.clamp(-1, 1) - two.clamp(-1, 1)).square().mean().item() / 4
    return -10 * math.log10(error) if error else math.inf


def check_target(file: Path) -> None:
    """Raise UserError where the file is an image that impasto did not write."""
    if file.exists() and not read_png_metadata(file):
        raise UserError(f"{str(file)!r} is an image that impasto did not write: use another --out, it stays as it is")


def save_image(pixels: Tensor, file: Path, info: dict[str, Any]) -> None:
    """Write (1, 3, H, W) in [-1, 1] as a PNG that says how it was made."""
    text = PngImagePlugin.PngInfo()
    text.add_text("impasto", json.dumps(info | {"version": VERSION}))
    with atomic(file) as path:
        as_image((pixels[0].float().cpu().clamp(-1, 1) + 1) / 2).save(path, "PNG", pnginfo=text)
