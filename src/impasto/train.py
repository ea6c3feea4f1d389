"""Training: family x noise law x objective x adapter.

    cache x and c of the references
    for each step:  lam ~ law, eps ~ N(0, I);  L = objective(family, (x, eps, c), lam);  Adam on the adapter

Every draw is a function of (seed, step, item) and every saved state is complete: the same command goes on where it
was stopped, by whatever, and ends with the same adapter and the same loss column, bit for bit.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impasto import adapters, devices, objectives
from impasto.adapters import text_encoder as text
from impasto.bases import cards, loader
from impasto.config import TrainConfig, check_ranges
from impasto.data import advice
from impasto.data import items as data
from impasto.data.draws import Draws as Draws
from impasto.data.draws import in_parts
from impasto.data.items import Item
from impasto.data.prepare import prepare_items
from impasto.errors import UserError
from impasto.execution import memory
from impasto.execution.apply import Running, place, start
from impasto.failures import interruptible, out_of_memory
from impasto.families.base import Family
from impasto.noise import offset
from impasto.noise.laws import noise_law, truncate_to_schedule
from impasto.objectives import Objective
from impasto.optim import optimizers
from impasto.styles import hub
from impasto.styles.card import CARD, write_card
from impasto.styles.save import save
from impasto.styles.weights import WEIGHTS
from impasto.training import prior
from impasto.training.distributed import Team
from impasto.training.parameters import Moving
from impasto.training.plan import check_base
from impasto.training.previews import Previews
from impasto.training.run import RunFolder, check_out, check_wandb, going_on, recipe_text
from impasto.training.states import saved, told

Progress = Callable[[int, float], None]
"""Called after each step with (step, loss)."""
Preparing = Callable[[int, int], None]
"""Called while pictures and captions are prepared with (done, of how many)."""
REFERENCES = 8  # pictures that are copied into the style folder
PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft", "accelerate")


def train(config: TrainConfig, progress: Progress | None = None, preparing: Preparing | None = None) -> dict[str, Any]:
    """Train into `config.out`, or go on there; returns a summary.

    Raises UserError on bad input, when the loss is not a number, when memory or the disk is full; KeyboardInterrupt
    after Ctrl-C, the state saved.
    """
    started = time.perf_counter()
    check_ranges(config)
    check_out(config)
    if config.push_to_hub:
        hub.check_access(config.push_to_hub)
    team = Team(config.device)
    if config.wandb and team.main:
        check_wandb()
    if team.shards and (config.preview or config.prior_weight):
        what, instead = "previews", "--no-preview, and `impasto generate` later"
        if not config.preview:
            what, instead = "prior", "--prior-weight 0"
        raise UserError(f"a base sharded over processes draws no {what}: {instead}")
    with team.state.main_process_first():
        outline = loader.load_config_only(config.base, config.components)  # tells before a download what is wrong
    items = data.read(config, cards.card(config.base), preparing, largest=outline.largest if outline else None)
    for line in advice.advise(items, config):
        warnings.warn(line, stacklevel=1)
    resolved = data.told(config, items)
    recipe_text(config, {"captions": [item.caption for item in items]})  # tells what cannot be written
    objectives.check(config)
    levels, add_adapter = noise_law(config), adapters.adapter(config.adapter)
    device, _ = devices.resolve_device(config.device, config.precision)
    optimizers.check(config, device, text.rates(config))
    if outline is not None:
        check_base(config, outline, device, team.shards)
    with team.state.main_process_first():
        family = loader.load(
            config.base, device=config.device, precision=config.precision, components=config.components
        )
        if outline is None:
            check_base(config, family, device, team.shards)
        levels = truncate_to_schedule(levels, family.schedule)
    config, shards = going_on(config), team.size if team.shards else 1
    running = memory.plan(config, family, family.device, family.precision, shards)
    running = team.first(running)  # its GPU's memory decides
    with team.state.main_process_first():
        kept = {"quantize": running.quantize, "precision": family.precision}
        config, resolved = replace(config, **kept), replace(resolved, **kept)
        run = RunFolder(config, inputs(config, family, items, team, running), main=team.main)
    try:
        done, state = run.resume()
        with told(config.out, memory.advice(config, running, "" if team.shards else family.device)):
            if done < config.steps or not all((config.out / name).is_file() for name in (WEIGHTS, CARD)):
                with team.state.main_process_first(), told(config.out, memory.before(config)):
                    prepared = prepare_items(
                        family, items, config.caption_dropout > 0, preparing if len(items) > data.FEW else None
                    )
                    if resolved.prior_weight:
                        prior.read(resolved, family)
                    previews = Previews(family, resolved)
                offset.warn_ineffective(config.offset_noise, levels, prepared.x[0][0].numel())
                draws = Draws(config, levels, prepared.to(family.device), family.device)
                family.free("encoders", "vae")
                text_lora = text.add(config, family)
                place(running, family, sharded=team.shards)
                objective = objectives.build(resolved, family)
                if resolved.prior_weight:
                    objective = prior.build(resolved, family, objective)
                named = add_adapter(
                    family, rank=config.rank, alpha=config.alpha, targets=config.targets, seed=config.seed
                )
                start(running, family, named)
                team.shard(family.denoiser, named)
                moving = Moving(config, named | text_lora, done, state, text.rates(config))
                loop(config, family, objective, draws, moving, run, done, previews, progress, team)
                if team.main:
                    finish(resolved, family, items, moving, previews)
                team.wait()
    finally:
        run.close()
    told_of = summary(config, run, done, time.perf_counter() - started) | {"running": "; ".join(running.why)}
    if config.push_to_hub and team.main:
        told_of["hub"] = hub.publish(config.out, config.push_to_hub, private=config.hub_private)["url"]
    return told_of


def loop(
    config: TrainConfig,
    family: Family,
    objective: Objective,
    draws: Draws,
    moving: Moving,
    run: RunFolder,
    done: int,
    previews: Previews,
    progress: Progress | None,
    team: Team,
) -> None:
    """Steps `done + 1` to `config.steps`, each with its row in metrics.jsonl, and the states on the way."""
    family.denoiser.train()
    itemwise = config.objective in objectives.ITEMWISE
    autocast = torch.autocast(family.device.split(":")[0], torch.bfloat16, enabled=family.precision == "bf16")
    with interruptible() as interrupted:
        for step in range(done + 1, config.steps + 1):
            parts: list[dict[str, Tensor]] = []
            levels: list[float] = []
            try:
                most = draws.at_once(step, family.patch) if itemwise else config.batch
                for micro in range(config.accumulate):
                    drawn = draws(step, micro * team.size + team.index)
                    for share, (batch, lam_B, own) in in_parts(drawn, most):
                        with autocast:
                            said = objective(family, text.anew(family, batch), lam_B, own)
                        (said["loss"] * share / config.accumulate).backward()
                        parts.append({name: value.detach() * share for name, value in said.items()})
                    levels += team.gather(drawn[1].tolist())
            except Exception as error:
                if out_of_memory(error) and step > done + 1:  # nothing has moved since the last step
                    run.save(step - 1, moving.tensors())
                raise
            row = {name: sum(part[name].item() for part in parts) / config.accumulate for name in parts[0]}
            *values, stop = team.mean([*row.values(), float(bool(interrupted))])
            row = dict(zip(row, values, strict=True))
            team.average_gradients(moving.parameters)
            row |= moving.step(step) if math.isfinite(row["loss"]) else {"grad_norm": math.nan}
            if not (math.isfinite(row["grad_norm"]) and moving.finite()):
                run.drop(step - 1)  # what the weights of that state come to is no number
                what = "adapter" if math.isfinite(row["grad_norm"]) else "loss"
                raise UserError(
                    f"the {what} is not a number any more at step {step}: stopped; {saved(config.out)}, in "
                    f"{run.state}; train into another --out with a lower --lr (it is {config.lr:g})"
                )
            run.log({"step": step} | row | {"lam": [round(lam, 4) for lam in levels]})
            if progress:
                progress(step, row["loss"])
            stop = stop or (team.size == 1 and bool(interrupted))
            if step % config.checkpoint_every == 0 or step == config.steps or stop:
                run.save(step, moving.tensors())
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step}: the same command goes on from there")
            if config.preview_every and step % config.preview_every == 0 and step < config.steps and team.main:
                with moving.averaged():
                    draw_previews(previews, step)
    family.denoiser.eval()


def finish(config: TrainConfig, family: Family, items: Sequence[Item], moving: Moving, previews: Previews) -> None:
    """The style folder's own files: adapter, references, previews, and last the card, which says that the run is
    complete: where the previews are cut off, the style is there, and the same command goes on with them.

    Warns of a picture that is not there any more, or is another one by now: it has no copy here.
    """
    with moving.averaged():
        save(family, config.out)
        for i, item in enumerate(items[:REFERENCES]):
            try:
                item.picture.load().image.save(config.out / f"reference{f'-{i}' if i else ''}.png")
            except UserError as error:
                warnings.warn(f"no copy of a reference in the style folder: {error}", stacklevel=2)
        write_card(config, family, draw_previews(previews, config.steps), version("impasto"))


def draw_previews(previews: Previews, step: int) -> list[str]:
    """The names of the previews; none, and a warning, where the device has no room for drawing: training has."""
    try:
        return previews.draw(step)
    except Exception as error:
        if not out_of_memory(error):
            raise
    warnings.warn(
        f"no previews of step {step}: drawing needs more memory than there is beside training; draw later with "
        "`impasto generate`, or leave them out with --no-preview",
        stacklevel=2,
    )
    return []


def inputs(config: TrainConfig, family: Family, items: Sequence[Item], team: Team, running: Running) -> dict[str, Any]:
    """What a run met beside its settings: hashes, whether the base was a folder or file here, captions, processes, how
    it was run, versions of what computes."""
    met = data.spoken(items) | {"processes": team.size, "running": list(running.why)}
    base = {"base_sha256": family.hash, "base_local": Path(config.base).exists()}
    return base | data.hashes(items) | met | {name: version(name) for name in PACKAGES}


def summary(config: TrainConfig, run: RunFolder, resumed_from: int, seconds: float) -> dict[str, Any]:
    """What the command prints."""
    losses = [row["loss"] for row in run.rows()]
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "out": str(config.out),
        "base": config.base,
        "recipe": config.recipe,
        "steps": config.steps,
        "resumed_from": resumed_from,
        "loss": sum(last) / len(last) if last else None,
        "seconds": round(seconds, 2),
    }
