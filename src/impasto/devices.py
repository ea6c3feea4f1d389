"""Devices: selection, memory, speed."""

from collections.abc import Sequence
from dataclasses import dataclass

from impasto.errors import UserError, nearest


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """(device, "fp32" | "bf16") with "auto" resolved. Raises UserError on an unknown or missing device."""
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
        raise UserError(f"unknown device {device!r}: a number must follow the colon, as in {kind}:0") from None
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


SPARE = 0.92  # usable share of free memory


@dataclass(frozen=True)
class Device:
    """free: available memory in bytes, None if unknown; peak: FLOP/s, None if unknown."""

    kind: str
    name: str
    free: float | None = None
    peak: float | None = None


def device(name: str) -> Device:
    """The device called `name`, with free memory and peak on CUDA."""
    kind = name.split(":")[0]
    if kind != "cuda":
        return Device(kind, kind)
    import torch

    free = torch.cuda.mem_get_info(name)[0]
    model = torch.cuda.get_device_name(name)
    return Device(kind, model, free, peak(model))


def peak(name: str) -> float | None:
    """The peak in FLOP/s by the longest key of PEAKS in a device's name, None if there is none."""
    known = [part for part in PEAKS if part in name]
    return PEAKS[max(known, key=len)] * 1e12 if known else None


def inference_placement(parts: Sequence[int], pixels: int, free: float) -> str:
    """Placement of a pipeline for generating `pixels` in one batch with `free` bytes: "whole" on the device, "by part"
    as components are used, or "by layer". parts: bytes of the components.

    Beside the weights 1.5 GB are needed, and 3 KB per pixel for the autoencoder's activations with the whole pipeline,
    1 KB per pixel for the denoiser alone.
    """
    if sum(parts) + 1.5 * GB + 3e3 * pixels <= SPARE * free:
        return "whole"
    return "by part" if max(parts) + 1.5 * GB + 1e3 * pixels <= SPARE * free else "by layer"
