"""What StyleInject costs: a training step (forward, backward, clipping, AdamW) against LoRA, in one process, in turns.

    python benchmarks/styleinject_speed.py --out benchmarks/results/styleinject_speed.json

One thread, random latents and texts. Seconds are the least CPU seconds of a step over all rounds: other work on the
machine can only add to them. Ratios are to the LoRA of the same rank and layers. Layers: "q v" is to_q and to_v; "with
convolutions" adds the family's convolutions. Peak memory is of one process per arm, above the base: the highest
resident size in two steps, minus the size before the adapter was attached.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch

from impasto.adapters import lora, styleinject
from impasto.adapters.config import LoRA, StyleInject
from impasto.bases import loader
from impasto.families.base import Family
from impasto.files import atomic

LAYERS = {"q v": ("to_q", "to_v"), "with convolutions": ("to_q", "to_v", "convolution")}
RUNS = (("q v", 32), ("with convolutions", 8), ("q v", 8))  # layers, rank
NS = (1, 4, 16)


def trainer(family: Family, layers: str, rank: int, n: int | None, batch: int, size: int) -> Callable[[], None]:
    """One training step of a StyleInject, or of a LoRA where n is None, attached to `family`."""
    if n is None:
        found = lora.add(family, LoRA(rank=rank, targets=LAYERS[layers]), seed=0)
    else:
        found = styleinject.attach(family, StyleInject(rank=rank, n=n, targets=LAYERS[layers]), 0)
    parameters, generator = list(found.values()), torch.Generator().manual_seed(0)
    channels, text = family.denoiser.config.in_channels, family.denoiser.config.cross_attention_dim
    x, eps = torch.randn(2, batch, channels, size, size, generator=generator)
    cond = {"text": torch.randn(batch, next(iter(family.text_lengths)), text, generator=generator)}
    lam = torch.linspace(-4.0, 4.0, batch)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as `optim.optimizers.adamw`

    def step() -> None:
        error = family.predict(x + eps, lam, cond).float() - family.target(x, eps, lam)
        error.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def load(base: str) -> tuple[Family, int]:
    """The base, and the side of its latents."""
    torch.set_num_threads(1)
    family = loader.load(base, device="cpu", precision="fp32")
    family.denoiser.train()
    return family, family.denoiser.config.sample_size


def least_seconds(arms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of a call of each arm, in turns: the least of `rounds`, after two that warm up."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 2):
        for arm, call in arms.items():
            start = time.process_time()
            call()
            if turn > 1:
                seconds[arm].append(time.process_time() - start)
    return {arm: min(own) for arm, own in seconds.items()}


def times(base: str, layers: str, rank: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a step of each arm, and the ratio to LoRA's."""
    arms = {"lora": None} | {f"n {n}": n for n in NS}
    steps = {arm: trainer(*(loaded := load(base))[:1], layers, rank, n, batch, loaded[1]) for arm, n in arms.items()}
    least = least_seconds(steps, rounds)
    return {arm: {"seconds": round(s, 4), "ratio": round(s / least["lora"], 3)} for arm, s in least.items()}


def memory(base: str, layers: str, rank: int, n: int | None, batch: int) -> float:
    """Peak MB above the base, in a process that does nothing else."""
    family, size = load(base)
    with torch.no_grad():
        family.denoiser(torch.zeros(1, family.denoiser.config.in_channels, size, size), 0, torch.zeros(
            1, 1, family.denoiser.config.cross_attention_dim))  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # the highest size starts anew
    before = resident("VmRSS")
    step = trainer(family, layers, rank, n, batch, size)
    for _ in range(2):
        step()
    return round(resident("VmHWM") - before, 1)


def resident(name: str) -> float:
    """MB of this process by the kernel's name: VmRSS is the size, VmHWM the highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd15", help="a U-Net family")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--memory-batch", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {"date": str(date.today()), "machine": platform.processor() or platform.machine()}
    result |= {"torch": torch.__version__, "threads": 1, "rounds": args.rounds, "base": args.base, "steps": {}}
    peaks = result[f"peak MB above the base, batch {args.memory_batch}"] = {}
    spawn = multiprocessing.get_context("spawn")
    for layers, rank in RUNS:
        for batch in args.batch:
            key = f"{layers}, r {rank}, batch {batch}"
            result["steps"][key] = times(args.base, layers, rank, batch, args.rounds)
            print(key, json.dumps(result["steps"][key]), flush=True)
        for n in (None, *NS):
            arm = f"{layers}, r {rank}, {'lora' if n is None else f'n {n}'}"
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                peaks[arm] = pool.submit(memory, args.base, layers, rank, n, args.memory_batch).result()
            print(arm, peaks[arm], "MB", flush=True)
        with atomic(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
