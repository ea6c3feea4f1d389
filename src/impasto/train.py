"""Training: family x noise law x objective x adapter.

    cache x and c of the references
    for each step:  lam ~ law, eps ~ N(0, I);  L = objective(family, (x, eps, c), lam);  Adam on the adapter

Every draw is a function of (seed, step, item) and every saved state is complete: the same command goes on where it
was stopped, by whatever, and ends with the same adapter and the same loss column, bit for bit.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Generator, Tensor

from impasto import adapters, families, objectives
from impasto.adapters.io import WEIGHTS, save
from impasto.config import TrainConfig, check_ranges
from impasto.data import captions, references
from impasto.data.prepare import Prepared, prepare
from impasto.data.references import Reference
from impasto.errors import UserError
from impasto.families.base import Family
from impasto.modelcard import write_card
from impasto.moving import Moving
from impasto.noise.laws import Law, within
from impasto.noise.random import generator, generators
from impasto.objectives import Batch, Objective
from impasto.plan import noise_law
from impasto.preview import Previews
from impasto.runfolder import RunFolder

Progress = Callable[[int, float], None]
"""Called after each step with (step, loss)."""
PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft", "accelerate")


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train into `config.out`, or go on there; returns a summary.

    Raises UserError on bad input and when the loss is not a number; KeyboardInterrupt after Ctrl-C, the state saved.
    """
    started = time.perf_counter()
    check_ranges(config)
    pairs = [(references.read(path, config.size), text) for path, text in captions.pair(config.image, config.caption)]
    levels, add_adapter = noise_law(config), adapters.adapter(config.adapter)
    family = families.load(config.base, device=config.device, precision=config.precision, components=config.components)
    levels = within(levels, family.schedule)
    run = RunFolder(config, inputs(family, pairs))
    done, state = run.resume()
    try:
        if done < config.steps or not (config.out / WEIGHTS).is_file():
            objective = objectives.build(config, family)
            previews = Previews(family, config)
            draws = Draws(config, levels, prepare(family, pairs, config.size).to(family.device))
            family.free("encoders", "vae")
            named = add_adapter(family, rank=config.rank, alpha=config.alpha, targets=config.targets, seed=config.seed)
            moving = Moving(config, named, done, state)
            loop(config, family, objective, draws, moving, run, done, previews, progress)
            finish(config, family, pairs, moving, previews)
    finally:
        run.close()
    return summary(config, run, done, time.perf_counter() - started)


def loop(
    config: TrainConfig,
    family: Family,
    objective: Objective,
    draws: "Draws",
    moving: Moving,
    run: RunFolder,
    done: int,
    previews: Previews,
    progress: Progress | None,
) -> None:
    """Steps `done + 1` to `config.steps`, each with its row in metrics.jsonl, and the states on the way."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=family.device == "cpu", mixed_precision="no")
    family.denoiser = accelerator.prepare(family.denoiser).train()
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=family.precision == "bf16")
    with interruptible() as interrupted:
        for step in range(done + 1, config.steps + 1):
            parts: list[dict[str, Tensor]] = []
            levels: list[float] = []
            for micro in range(config.accumulate):
                batch, lam_B, own = draws(step, micro)
                with autocast:
                    parts.append(objective(family, batch, lam_B, own))
                accelerator.backward(parts[-1]["loss"] / config.accumulate)
                levels += lam_B.tolist()
            row = {name: sum(part[name].item() for part in parts) / len(parts) for name in parts[0]}
            row |= moving.step(step) if math.isfinite(row["loss"]) else {"grad_norm": math.nan}
            if not math.isfinite(row["grad_norm"]):
                raise UserError(
                    f"the loss is not a number any more at step {step}: stopped, the last good state stays in "
                    f"{run.state}; train into another --out with a lower --lr (it is {config.lr:g})"
                )
            run.log({"step": step} | row | {"lam": [round(lam, 4) for lam in levels]})
            if progress:
                progress(step, row["loss"])
            if step % config.checkpoint_every == 0 or step == config.steps or interrupted:
                run.save(step, moving.tensors())
            if interrupted:
                raise KeyboardInterrupt(f"stopped after step {step}: the same command goes on from there")
            if config.preview_every and step % config.preview_every == 0 and step < config.steps:
                with moving.averaged():
                    previews.draw(step)
    family.denoiser = accelerator.unwrap_model(family.denoiser).eval()


def finish(
    config: TrainConfig, family: Family, pairs: Sequence[tuple[Reference, str]], moving: Moving, previews: Previews
) -> None:
    """The style folder's own files: pictures, card, and last the adapter, which says that the run is complete."""
    for i, (reference, _) in enumerate(pairs):
        reference.image.save(config.out / f"reference{f'-{i}' if i else ''}.png")
    with moving.averaged():
        write_card(config, family, previews.draw(config.steps), version("impasto"))
        save(family, config.out)


def inputs(family: Family, pairs: Sequence[tuple[Reference, str]]) -> dict[str, Any]:
    """What a run met beside its settings: hashes, and the versions of what computes."""
    hashes = {"base_sha256": family.hash, "references_sha256": [reference.sha256 for reference, _ in pairs]}
    return hashes | {name: version(name) for name in PACKAGES}


def summary(config: TrainConfig, run: RunFolder, resumed_from: int, seconds: float) -> dict[str, Any]:
    """What the command prints."""
    losses = [row["loss"] for row in run.rows()]
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "out": str(config.out),
        "base": config.base,
        "recipe": config.recipe,
        "steps": len(losses),
        "resumed_from": resumed_from,
        "loss": sum(last) / len(last),
        "seconds": round(seconds, 2),
    }


@dataclass(frozen=True)
class Draws:
    """What step and micro-batch train on: n draws of (reference, noise level, noise), and one text length for all."""

    config: TrainConfig
    law: Law
    prepared: Prepared

    def __call__(self, step: int, micro: int) -> tuple[Batch, Tensor, list[Generator]]:
        """(batch, lam_B, the generators of its items, which an objective may draw from further)."""
        x, n = self.prepared.x, self.config.batch
        own = generators(self.config.seed, step, range(micro * n, micro * n + n))
        index = torch.cat([torch.randint(len(x), (1,), generator=g) for g in own]).to(x.device)
        lam_B = self.law(own).to(x.device)
        eps = torch.stack([torch.randn(x.shape[1:], generator=g) for g in own]).to(x.device)
        cond = {name: rows[index] for name, rows in self.prepared.conds[self.length(step)].items()}
        return Batch(x[index], eps, cond), lam_B, own

    def length(self, step: int) -> int:
        """The text length of a step: each as often as the base's card says."""
        u = torch.rand((), generator=generator(self.config.seed, step, "text length")).item()
        lengths, shares = list(self.prepared.shares), torch.tensor(list(self.prepared.shares.values()))
        return lengths[int((u >= shares.cumsum(0)[:-1]).sum())]


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list, for the loop to stop after its step; a second one stops at once."""
    caught: list[int] = []

    def catch(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
