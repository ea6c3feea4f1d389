"""What a run is going to do, in words and bars: for `--dry-run` and for the model card."""

from dataclasses import replace
from typing import Any

import torch

from impasto import devices
from impasto.bases import cards, loader
from impasto.config import TrainConfig, as_dict
from impasto.families.base import Family
from impasto.noise import offset
from impasto.noise.histogram import histogram
from impasto.noise.laws import Law, noise_law, truncate_to_schedule


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
    from impasto import adapters, objectives
    from impasto.adapters import text_encoder as text
    from impasto.config import check_ranges
    from impasto.data import advice, items
    from impasto.execution import memory
    from impasto.optim import optimizers
    from impasto.training.run import check_out, check_recipe, check_wandb, going_on, recipe_text

    check_ranges(config)
    check_out(config)
    if config.wandb:
        check_wandb()
    adapters.adapter(config.adapter)
    objectives.check(config)
    device, precision = devices.resolve_device(config.device, config.precision)
    optimizers.check(config, device, text.rates(config))
    family = loader.load_config_only(config.base, config.components)
    found = items.read(config, cards.card(config.base), largest=family.largest if family else None)
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
    schedule = loader.schedule(config.base) if family is None else family.schedule
    levels = truncate_to_schedule(noise_law(config), schedule)
    offset.warn_ineffective(config.offset_noise, levels, positions(config.size, family))
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
    from impasto.adapters import lora
    from impasto.adapters import text_encoder as text
    from impasto.execution import apply as running
    from impasto.execution.memory import skeleton
    from impasto.families.base import check_size
    from impasto.objectives import weighting
    from impasto.optim import optimizers
    from impasto.training import prior

    check_size(config.size, family)
    truncate_to_schedule(noise_law(config), family.schedule)
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
