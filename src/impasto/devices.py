"""Devices: which one, and how much it holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from impasto.errors import UserError, nearest


def place(device: str, precision: str) -> tuple[str, str]:
    """("cpu" | "cuda" | "mps", "fp32" | "bf16") for what may be "auto". Raises UserError on anything else."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {device!r}: {nearest(device, ['auto', 'cpu', 'cuda', 'mps'])}")
    try:
        number = torch.device(device).index
    except RuntimeError:
        raise UserError(f"unknown device {device!r}: behind the colon goes a number, as in {kind}:0") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or (kind == "cuda" and number and number >= torch.cuda.device_count()):
        raise UserError(f"there is no device {device!r} here: --device cpu, or auto")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"unknown precision {precision!r}: {nearest(precision, ['auto', 'fp32', 'bf16'])}")
    return device, precision


GB = 1e9


PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "A6000": 155,
    "L4": 121,
    "5090": 210,
    "4090": 165,
    "4080": 97,
    "3090": 71,
    "A10": 125,
}
"""Dense bf16 matmul peaks in TFLOP/s, by a part of the device's name; makers' data sheets."""


SPARE = 0.92


@dataclass(frozen=True)
class Device:
    """free: bytes that the run may take, None when not known; peak: FLOP/s, None when not known."""

    kind: str
    name: str
    free: float | None = None
    peak: float | None = None


def device(name: str) -> Device:
    """The device that a run will use."""
    kind = name.split(":")[0]
    if kind != "cuda":
        return Device(kind, kind)
    import torch

    free = torch.cuda.mem_get_info(name)[0]
    called = torch.cuda.get_device_name(name)
    return Device(kind, called, free, peak(called))


def peak(name: str) -> float | None:
    """The longest name of PEAKS in a device's name decides."""
    known = [part for part in PEAKS if part in name]
    return PEAKS[max(known, key=len)] * 1e12 if known else None


def drawing(parts: Sequence[int], pixels: int, free: float) -> str:
    """How a pipeline of parts of so many bytes draws `pixels` at once with `free` bytes: "whole" on the device, "by
    part" as they are used, or "by layer".

    Beside the weights 1.5 GB, and 3 KB a pixel for the autoencoder's layers, which are the largest and come when all
    is there; a part by itself at the denoiser's turn takes 1 KB a pixel.
    """
    if sum(parts) + 1.5 * GB + 3e3 * pixels <= SPARE * free:
        return "whole"
    return "by part" if max(parts) + 1.5 * GB + 1e3 * pixels <= SPARE * free else "by layer"
