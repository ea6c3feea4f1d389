"""What a run is going to do, in words and bars: for `--dry-run` and for the model card."""

import math
from typing import Any

import torch

from impasto.config import TrainConfig, as_dict
from impasto.noise.laws import Law, Truncated, law, within
from impasto.noise.schedule import RectifiedFlow

LOW, HIGH, BINS, DRAWS = -14.0, 6.0, 20, 20_000


def noise_law(config: TrainConfig) -> Law:
    """The law that the config names. Raises UserError when it cannot be."""
    return law(config.noise, mean=config.noise_mean, std=config.noise_std, shift=config.noise_shift)


def histogram(levels: Law) -> dict[str, Any]:
    """Shares of 20,000 draws: per log-SNR unit (the end bins take the tails) and per tenth of sigma, with medians.

    sigma is a rectified flow's noise share `t = sigmoid(-lam / 2)`, 1 being pure noise. "cut" is the share of a
    truncated law that lies outside of the base's levels.
    """
    shared = torch.Generator("cpu").manual_seed(0)
    lam = levels([shared] * DRAWS)
    sigma = RectifiedFlow().timestep(lam)
    bins = ((lam - LOW) / (HIGH - LOW) * BINS).floor().long().clamp(0, BINS - 1)
    tenths = (sigma * 10).floor().long().clamp(0, 9)
    cut = {"cut": round(levels.cut, 4)} if isinstance(levels, Truncated) else {}
    return cut | {
        "log_snr": {"low": LOW, "high": HIGH, "shares": shares(bins, BINS), "median": round(lam.median().item(), 3)},
        "sigma": {"low": 0.0, "high": 1.0, "shares": shares(tenths, 10), "median": round(sigma.median().item(), 4)},
    }


def shares(index: torch.Tensor, n: int) -> list[float]:
    return [round(x / len(index), 4) for x in torch.bincount(index, minlength=n).tolist()]


def bars(noise: dict[str, Any], width: int = 36) -> str:
    """The histogram as text, noisiest first; beside each log-SNR its sigma."""
    lines = [f"log-SNR (median {noise['log_snr']['median']}), noisiest first; sigma = share of noise"]
    if noise.get("cut"):
        lines.insert(0, f"truncated to the levels of this base: {noise['cut']:.1%} of the law lies outside")
    step = (HIGH - LOW) / BINS
    top = max(noise["log_snr"]["shares"])
    for i, share in enumerate(noise["log_snr"]["shares"]):
        low = LOW + i * step
        sigma = 1 / (1 + math.exp((low + step / 2) / 2))
        lines.append(f"{low:6.1f}  sigma {sigma:.3f}  {share:6.1%}  {'█' * round(width * share / top)}".rstrip())
    lines.append(f"sigma (median {noise['sigma']['median']})")
    top = max(noise["sigma"]["shares"])
    for i, share in reversed(list(enumerate(noise["sigma"]["shares"]))):
        lines.append(
            f"{i / 10:6.1f} to {i / 10 + 0.1:.1f}    {share:6.1%}  {'█' * round(width * share / top)}".rstrip()
        )
    return "\n".join(lines)


def plan(config: TrainConfig) -> dict[str, Any]:
    """Every setting as it will be used, and the noise levels; nothing is loaded, nothing written. Raises UserError."""
    from impasto import adapters, families, objectives
    from impasto.config import check_ranges
    from impasto.data import captions, references

    check_ranges(config)
    adapters.adapter(config.adapter)
    objectives.objective(config.objective)
    device, precision = families.place(config.device, config.precision)
    for path, _ in captions.pair(config.image, config.caption):
        references.read(path, config.size)
    settings = as_dict(config) | {"device": device, "precision": precision, "alpha": config.alpha or config.rank}
    draws = config.steps * config.batch * config.accumulate
    levels = within(noise_law(config), families.schedule(config.base))
    return {"settings": settings, "draws": draws, "noise": histogram(levels)}
