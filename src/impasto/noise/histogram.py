"""Histograms of noise laws, as JSON values and as text."""

import math
from collections.abc import Callable
from typing import Any

import torch

from impasto.noise.laws import Law, Truncated
from impasto.noise.schedule import RectifiedFlow

LOW, HIGH, BINS, DRAWS = -14.0, 6.0, 20, 20_000


def histogram(levels: Law, weight: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, Any]:
    """Histogram of 20,000 draws: shares per log-SNR unit (end bins include the tails) and per tenth of sigma, medians.

    sigma is a rectified flow's noise share `t = sigmoid(-lam / 2)`, 1 being pure noise. "cut" is the share of the
    untruncated law that lies outside the base's range. weight: the loss weight at each log-SNR; then the histogram is
    of the density times the weight.
    """
    shared = torch.Generator("cpu").manual_seed(0)
    lam = levels([shared] * DRAWS)
    sigma = RectifiedFlow().timestep(lam)
    bins = ((lam - LOW) / (HIGH - LOW) * BINS).floor().long().clamp(0, BINS - 1)
    tenths = (sigma * 10).floor().long().clamp(0, 9)
    w = torch.ones(DRAWS) if weight is None else weight(lam)
    cut = {"cut": round(levels.cut, 4)} if isinstance(levels, Truncated) else {}
    return cut | {
        "log_snr": {"low": LOW, "high": HIGH, "shares": shares(bins, w, BINS), "median": round(median(lam, w), 3)},
        "sigma": {"low": 0.0, "high": 1.0, "shares": shares(tenths, w, 10), "median": round(median(sigma, w), 4)},
    }


def shares(index: torch.Tensor, w: torch.Tensor, n: int) -> list[float]:
    counts = torch.bincount(index, w.double(), minlength=n)
    return [round(x, 4) for x in (counts / counts.sum()).tolist()]


def median(values: torch.Tensor, w: torch.Tensor) -> float:
    """The weighted median."""
    ordered, order = values.sort()
    share = w[order].double().cumsum(0)
    return ordered[int((share < share[-1] / 2).sum())].item()


def bars(
    noise: dict[str, Any],
    width: int = 36,
    what: str = "log-SNR",
    band: tuple[float, float] = (math.inf, -math.inf),
    short: bool = False,
) -> str:
    """The histogram as text, noisiest bin first, with sigma beside each log-SNR and a | on bins centred in `band`.
    short: without empty bins (below .05 %) and without the second histogram, over sigma."""
    lines = [f"{what} (median {noise['log_snr']['median']}), noisiest first; sigma = share of noise"]
    if noise.get("cut"):
        lines.insert(0, f"truncated: {noise['cut']:.1%} of the law lies outside")
    step = (HIGH - LOW) / BINS
    top = max(noise["log_snr"]["shares"])
    for i, share in enumerate(noise["log_snr"]["shares"]):
        if short and share < 0.0005:
            continue
        low = LOW + i * step
        sigma = 1 / (1 + math.exp((low + step / 2) / 2))
        mark = "|" if band[0] <= low + step / 2 <= band[1] else " "
        lines.append(f"{low:6.1f}  sigma {sigma:.3f}  {share:6.1%} {mark}{'█' * round(width * share / top)}".rstrip())
    if short:
        return "\n".join(lines)
    lines.append(f"sigma (median {noise['sigma']['median']})")
    top = max(noise["sigma"]["shares"])
    for i, share in reversed(list(enumerate(noise["sigma"]["shares"]))):
        lines.append(
            f"{i / 10:6.1f} to {i / 10 + 0.1:.1f}    {share:6.1%}  {'█' * round(width * share / top)}".rstrip()
        )
    return "\n".join(lines)
