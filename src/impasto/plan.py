"""What a run is going to do, in words and bars: for `--dry-run` and for the model card."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from impasto.config import TrainConfig, as_dict
from impasto.families.base import Family
from impasto.noise import laws, offset
from impasto.noise.laws import Law, Truncated, within
from impasto.noise.schedule import RectifiedFlow

LOW, HIGH, BINS, DRAWS = -14.0, 6.0, 20, 20_000


def noise_law(config: TrainConfig) -> Law:
    """The law that the config names. Raises UserError when it cannot be."""
    return laws.of(vars(config))


def histogram(levels: Law, weight: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, Any]:
    """Shares of 20,000 draws: per log-SNR unit (the end bins take the tails) and per tenth of sigma, with medians.

    sigma is a rectified flow's noise share `t = sigmoid(-lam / 2)`, 1 being pure noise. "cut" is the share of a
    truncated law that lies outside of the base's levels. weight: of the loss at a level; then a draw counts so much,
    and the shares are those of the density times the weight.
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
    """The value below which half of the weight lies."""
    ordered, order = values.sort()
    share = w[order].double().cumsum(0)
    return ordered[int((share < share[-1] / 2).sum())].item()


def bars(
    noise: dict[str, Any],
    width: int = 36,
    what: str = "log-SNR",
    band: tuple[float, float] = (math.inf, -math.inf),
) -> str:
    """The histogram as text, noisiest first; beside each log-SNR its sigma, and a | where it lies in `band`."""
    lines = [f"{what} (median {noise['log_snr']['median']}), noisiest first; sigma = share of noise"]
    if noise.get("cut"):
        lines.insert(0, f"truncated: {noise['cut']:.1%} of the law lies outside")
    step = (HIGH - LOW) / BINS
    top = max(noise["log_snr"]["shares"])
    for i, share in enumerate(noise["log_snr"]["shares"]):
        low = LOW + i * step
        sigma = 1 / (1 + math.exp((low + step / 2) / 2))
        mark = "|" if band[0] <= low + step / 2 <= band[1] else " "
        lines.append(f"{low:6.1f}  sigma {sigma:.3f}  {share:6.1%} {mark}{'█' * round(width * share / top)}".rstrip())
    lines.append(f"sigma (median {noise['sigma']['median']})")
    top = max(noise["sigma"]["shares"])
    for i, share in reversed(list(enumerate(noise["sigma"]["shares"]))):
        lines.append(
            f"{i / 10:6.1f} to {i / 10 + 0.1:.1f}    {share:6.1%}  {'█' * round(width * share / top)}".rstrip()
        )
    return "\n".join(lines)


def data_lines(data: dict[str, Any]) -> str:
    """What `data.items.summary` counted, and the advice, as text."""
    counts = ", ".join(f"{data[key]} {key}" for key in ("pictures", "captions", "crops", "masks"))
    lines = [f"data: {counts}"]
    lines.append("buckets: " + ", ".join(f"{shape} ({n})" for shape, n in data["buckets"].items()))
    if len(data["repeats"]) > 1:
        lines.append("repeats: " + ", ".join(f"{times} times ({n})" for times, n in data["repeats"].items()))
    return "\n".join([*lines, *(f"advice: {line}" for line in data["advice"])])


def plan(config: TrainConfig) -> dict[str, Any]:
    """Every setting as it will be used, the pictures, and the noise levels; no weights are read, and nothing is written
    but the caches of configurations and of what pictures are like. Raises UserError."""
    from impasto import adapters, families, memory, objectives, optimizers
    from impasto.adapters import text
    from impasto.config import check_ranges
    from impasto.data import advice, items
    from impasto.runfolder import check_out, check_recipe, check_wandb, going_on, recipe_text

    check_ranges(config)
    check_out(config)
    if config.wandb:
        check_wandb()
    adapters.adapter(config.adapter)
    objectives.check(config)
    device, precision = families.place(config.device, config.precision)
    optimizers.check(config, device, text.rates(config))
    family = families.outline(config.base, config.components)
    found = items.read(config, families.card(config.base), largest=family.largest if family else None)
    items.told(config, found)
    recipe_text(config, {"captions": [item.caption for item in found]})
    data = items.summary(found) | {"advice": advice.advise(found, config)}
    if family is not None:
        check_base(config, family, device)
    config = going_on(config)
    running = memory.plan(config, family, device, precision)
    check_recipe(replace(config, quantize=running.quantize, precision=precision), items.hashes(found))
    settings = as_dict(config) | {"device": device, "precision": precision, "alpha": config.alpha or config.rank}
    settings |= {"checkpointing": running.checkpointing, "quantize": running.quantize}
    settings |= {"compile": "on" if running.compile else "off", "offload": "on" if running.offload else "off"}
    draws = config.steps * config.batch * config.accumulate
    schedule = families.schedule(config.base) if family is None else family.schedule
    levels = within(noise_law(config), schedule)
    offset.warn(config.offset_noise, levels, positions(config.size, family))
    result = {"settings": settings, "data": data, "draws": draws, "noise": histogram(levels)}
    result |= {"running": "; ".join(running.why)}
    if weighting := effective(config, family, levels):
        result["noise_times_weighting"] = weighting
    return result


def check_base(config: TrainConfig, family: Family, device: str, shards: bool = False) -> None:
    """What can be said of settings on a base before its weights are read. Raises UserError on a size and on targets
    that it does not have, noise levels and a loss weighting that are not for it, ways of running that cannot be had, an
    optimiser that has no steps for these, text encoders that cannot be trained, and a prior of no captions. shards: the
    base is sharded over processes."""
    from impasto import optimizers, running
    from impasto.adapters import lora, text
    from impasto.generate import check_size
    from impasto.memory import skeleton
    from impasto.objectives import prior, weighting

    check_size(config.size, family)
    within(noise_law(config), family.schedule)
    weighting.build(config, family)
    running.check(config, device, 2 if shards else 1)
    model = skeleton(family)
    running.check_attention(model, config.attention)
    names = lora.endings(family, config.targets, model)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    matrices = not any(lora.ends(name, names) for name in convolutions)
    optimizers.check(config, device, text.rates(config), matrices)
    text.check(config, family, shards)
    if config.prior_weight:
        prior.check(config, family)


def positions(size: int, family: Family | None) -> int:
    """Latent positions of a square picture, by whose number what noise hides is compared; of 8 pixels a side where the
    base is not here."""
    return (size // (8 if family is None else family.unit // family.patch)) ** 2


def effective(config: TrainConfig, family: Family | None, levels: Law) -> dict[str, Any] | None:
    """The histogram of levels times their loss weight, None without a weighting.

    A base that is not here (None) counts as one that predicts eps. Raises UserError.
    """
    from impasto.objectives import weighting

    weighting.check(config.weighting)
    if config.weighting == "none":
        return None
    if family is not None:
        weight = weighting.build(config, family)
    else:
        of_eps = weighting.WEIGHTINGS[config.weighting][0]
        weight = lambda lam: of_eps(lam, config.gamma)  # noqa: E731
    return histogram(levels, weight)
