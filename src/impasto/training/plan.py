"""The plan of a run: every check before weights are read, once. `--dry-run` prints it, `train` runs it."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

from impasto import devices
from impasto.adapters.base import adapter_of
from impasto.adapters.text_encoder import TextConditioning, build_text
from impasto.bases import cards, loader
from impasto.config import TrainConfig, change, flatten, resolve
from impasto.data import advice, captions, items
from impasto.data.items import Item
from impasto.errors import UserError
from impasto.execution import apply as execution
from impasto.execution import memory
from impasto.execution.apply import NOT_QUANTIZED, ExecutionPlan
from impasto.families.base import Family, check_size
from impasto.noise import offset
from impasto.noise.histogram import histogram
from impasto.noise.laws import Law, noise_law, truncate_to_schedule
from impasto.objectives import OBJECTIVES, weighting
from impasto.objectives.base import build_objective
from impasto.objectives.config import Denoise
from impasto.optim import optimizers
from impasto.progress import Progress, ignore
from impasto.registry import name_of
from impasto.styles import hub
from impasto.training import prior, watch
from impasto.training.initial import check_initial, read_initial
from impasto.training.run_folder import check_out, check_recipe, check_wandb, recipe_text, resume_quantize


@dataclass(frozen=True)
class Plan:
    """A checked run. expanded: the config with its images and captions listed one by one and triggers filled in, for
    previews, card and prior prompts. outline: the base by its configurations alone, None where it is not here. law: not
    truncated to the base's schedule yet. text: nothing attached yet. prior_items: given images for prior preservation.
    """

    config: TrainConfig
    expanded: TrainConfig
    items: list[Item]
    advice: list[str]
    outline: Family | None
    device: str
    precision: str
    law: Law
    text: TextConditioning
    prior_items: list[Item]

    def hashes(self) -> dict[str, Any]:
        """Of the images, see `data.items.hashes`, and prior_sha256 of given images for prior preservation."""
        found = items.hashes(self.items)
        return found | ({"prior_sha256": items.hashes(self.prior_items)["data_sha256"]} if self.prior_items else {})

    def choose_execution(self, family: Family | None, shards: int = 1) -> ExecutionPlan:
        """Memory against speed on this device. shards: processes over which the base is sharded."""
        return memory.choose_execution(self.config, family, self.device, self.precision, shards)


def make_plan(config: TrainConfig, progress: Progress = ignore, shards: bool = False) -> Plan:
    """Check everything that can be checked before weights are read; nothing is written but the caches of configurations
    and of image properties. shards: the base is sharded over processes. Raises UserError."""
    check_out(config)
    if config.log.push_to_hub:
        hub.check_access(config.log.push_to_hub)
    if config.log.wandb:
        check_wandb()
    outline = loader.load_config_only(config.base, config.components)
    found = items.read(
        config.data, config.base, cards.card(config.base), progress, outline.largest if outline else None
    )
    expanded = expand(config, found)
    watch.check(expanded)
    prior_items = prior.read_images(expanded)
    preserved = [*expanded.prior.prompt, *(one.caption for one in prior_items)] if config.prior.weight else []
    recipe_text(config, {"captions": [item.caption for item in found]})  # fails on text that cannot be written
    device, precision = devices.resolve_device(config.device, config.precision)
    text = build_text(config)
    optimizers.check(config.optim, device, text.rates)
    read_initial(config)
    plan = Plan(
        config=resume_quantize(config),
        expanded=expanded,
        items=found,
        advice=advice.advise(items.pictures(found), config.data, config.prior.weight > 0, preserved),
        outline=outline,
        device=device,
        precision=precision,
        law=noise_law(config),
        text=text,
        prior_items=prior_items,
    )
    if outline is not None:
        check_base(plan, outline, shards)
    return plan


def expand(config: TrainConfig, found: list[Item]) -> TrainConfig:
    """The config with its images and captions listed one by one, and triggers filled in."""
    prompts = (config.log.preview_prompt, config.prior.prompt)
    preview, preserved = (tuple(captions.fill(p, trigger=config.data.trigger) for p in some) for some in prompts)
    return replace(
        config,
        data=items.expand_captions(config.data, found),
        log=replace(config.log, preview_prompt=preview),
        prior=replace(config.prior, prompt=preserved),
    )


def check_base(plan: Plan, family: Family, shards: bool = False) -> None:
    """Raise UserError where the settings are not for this base: size, targets, noise levels, loss weighting, execution,
    optimiser, trained text encoders, prior captions."""
    config = plan.config
    check_size(config.data.size, family)
    truncate_to_schedule(plan.law, family.schedule)
    build_objective(config.objective, family)
    execution.check(config.execution, plan.device, 2 if shards else 1)
    model = memory.meta_model(family)
    execution.check_attention(model, config.execution.attention)
    adapter = adapter_of(config.adapter)
    if adapter.replaces_base:
        check_full(config, shards)
    matrices = adapter.only_matrices(family, config.adapter, model)
    optimizers.check(config.optim, plan.device, plan.text.rates, matrices)
    check_initial(config, family, model)
    plan.text.check(family, shards)
    if config.prior.weight:
        prior.check(config, family)


def check_full(config: TrainConfig, shards: bool) -> None:
    """Raise UserError on what needs the untrained base beside it, or weights in fewer bits, where the base itself is
    trained."""
    name = name_of(OBJECTIVES, config.objective)
    needs = {
        f"--objective {name} compares with the base": config.objective.needs_base,
        "--prior.target prediction compares with the base": config.prior.weight > 0
        and config.prior.target == "prediction",
        f"--quantize {config.execution.quantize} freezes the base": config.execution.quantize not in NOT_QUANTIZED,
        "--offload on keeps the base frozen": config.execution.offload == "on",
        "it cannot be sharded over processes": shards,
    }
    if wrong := [why for why, there in needs.items() if there]:
        raise UserError(f"this adapter trains the base's own weights, and {wrong[0]}: leave it out, or --adapter lora")


def describe(plan: Plan) -> dict[str, Any]:
    """Every setting as it will be used, the data, noise levels and execution, for `--dry-run`. Raises UserError."""
    config, family = plan.config, plan.outline
    running = plan.choose_execution(family)
    used = change(config, quantize=running.quantize, precision=plan.precision)
    check_recipe(used, plan.hashes())
    settings = flatten(used) | {"device": plan.device, "checkpointing": running.checkpointing}
    if hasattr(config.adapter, "rank"):
        settings["alpha"] = config.adapter.alpha or config.adapter.rank
    ours, given = flatten(resolve(None, config.base)), flatten(config)
    changed = {key: [ours.get(key), value] for key, value in given.items() if ours.get(key) != value}
    settings |= {"compile": "on" if running.compile else "off", "offload": "on" if running.offload else "off"}
    schedule = loader.schedule(config.base) if family is None else family.schedule
    levels = truncate_to_schedule(plan.law, schedule)
    offset.warn_ineffective(config.noise.offset, levels, latent_positions(config.data.size, family))
    data = items.summary(plan.items) | {"advice": plan.advice}
    result: dict[str, Any] = {"settings": settings, "changed": changed, "data": data}
    if plan.prior_items:
        result["data"]["prior_pictures"] = len(plan.prior_items)
    result["draws"] = config.optim.steps * config.optim.batch * config.optim.accumulate
    result |= {"noise": histogram(levels), "running": "; ".join(running.why)}
    if weighted := weighted_histogram(config, family, levels):
        result["noise_times_weighting"] = weighted
    return result


def warn_advice(plan: Plan) -> None:
    for line in plan.advice:
        warnings.warn(line, stacklevel=2)


def latent_positions(size: int, family: Family | None) -> int:
    """Latent positions of a square image, by whose number noise levels are compared; of 8 pixels a side where the base
    is not here."""
    return (size // (8 if family is None else family.unit // family.patch)) ** 2


def weighted_histogram(config: TrainConfig, family: Family | None, levels: Law) -> dict[str, Any] | None:
    """The histogram of levels times their loss weight, None without a weighting.

    A base that is not here (None) counts as one that predicts eps. Raises UserError.
    """
    own = config.objective
    if not isinstance(own, Denoise):
        return None
    weighting.check(own.weighting)
    if own.weighting == "none":
        return None
    if family is not None:
        return histogram(levels, weighting.build(own, family))
    of_eps = weighting.WEIGHTINGS[own.weighting][0]
    return histogram(levels, lambda lam: of_eps(lam, own.gamma))


OWN_LINES = ("base", "out", "recipe", "precision", "image", "caption", "steps", "batch", "accumulate")
"""Settings that the plan's text has a place for."""


def plan_lines(plan: dict[str, Any]) -> str:
    """What `describe` found, and `cost`, as text: base and recipe, what differs from the base's defaults, images and
    captions with the advice, steps, time and memory."""
    settings, cost = plan["settings"], plan.get("cost")
    batch = f"{settings['batch']}" + (f" x {settings['accumulate']}" if settings["accumulate"] > 1 else "")
    lines = [
        f"{settings['base']} by recipe {settings['recipe']} on {settings['device']} in {settings['precision']}: "
        f"{settings['steps']} steps of {batch}, into {settings['out']}"
    ]
    own = [
        f"{key} {as_flag(now)} ({as_flag(was)})" for key, (was, now) in plan["changed"].items() if key not in OWN_LINES
    ]
    lines.append(f"other than the base's defaults (in brackets): {', '.join(own) or 'nothing'}")
    lines.append(data_lines(plan["data"]))
    if cost:
        lines.append(
            f"time and memory: {cost['step_seconds']:.2g} s a step, {cost['seconds']:.0f} s for all of them (measured "
            f"here, on two steps), {cost['memory_gb']:.1f} GB"
        )
    else:
        lines.append(f"time and memory: {plan['running']}")
    return "\n".join(lines)


def as_flag(value: Any) -> str:
    """A setting as it is given as a flag."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value) if value not in ("", None) else "none"


def data_lines(data: dict[str, Any]) -> str:
    """What `data.items.summary` counted, and the advice, as text."""
    names = {"pictures": "image", "captions": "caption", "crops": "crop", "masks": "mask"}
    counts = [f"{data[key]} {name}{'' if data[key] == 1 else 's'}" for key, name in names.items() if data[key]]
    lines = [f"data: {', '.join(counts)}"]
    lines.append("buckets: " + ", ".join(f"{shape} ({n})" for shape, n in data["buckets"].items()))
    if len(data["repeats"]) > 1:
        lines.append("repeats: " + ", ".join(f"{times} times ({n})" for times, n in data["repeats"].items()))
    for one in data.get("concepts", ()):
        where = f"{one['mode']} {one['region']}" + (f", {one['crops']} crops" if one["mode"] == "crop" else "")
        lines.append(f"concept {one['concept']}: {one['caption']!r}, {where}, {one['share']:.1%} of the draws")
    if "prior_pictures" in data:
        lines.append(f"prior: {data['prior_pictures']} pictures")
    return "\n".join([*lines, *(f"advice: {line}" for line in data["advice"])])
