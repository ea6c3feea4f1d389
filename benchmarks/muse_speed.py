"""mini-muse: an image beside diffusers' own pipeline, and a pretraining step eager and compiled; in turns.

    python benchmarks/muse_speed.py --out benchmarks/results/muse_speed.json

One thread. Seconds are the least CPU seconds over all rounds: other work on the machine can only add to them. Images:
16 steps, guidance 3, batches of `--images`, the same prompts. The step: `--batch` random images, forward, backward,
clipping, Muon and AdamW, in bf16.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedPipeline
from torch.nn.attention import sdpa_kernel

from impasto.bases import embedded as mini
from impasto.families.muse import MusePipeline
from impasto.files import atomic
from impasto.pretrain import base as shared
from impasto.pretrain.clip import WIDTH
from impasto.pretrain.image_tokenizer import CODES, SIDE
from impasto.pretrain.run import FAST_ATTENTION
from impasto.pretrain.uvit import UViT


def least_seconds(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each arm, the least of `rounds` after two that warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name, run in arms.items():
            start = time.process_time()
            run()
            if turn > 1:
                seconds[name].append(time.process_time() - start)
    return {name: min(own) for name, own in seconds.items()}


def image_arms(images: int) -> dict[str, Callable[[], Any]]:
    """The pipeline of diffusers and ours on the same components."""
    theirs = AmusedPipeline.from_pretrained(mini.ensure("mini-muse"))
    ours = MusePipeline(**theirs.components)
    prompts = ["a rocket in flat style"] * images

    def run(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        given = {"height": 128, "width": 128, "num_inference_steps": 16, "guidance_scale": 3.0}
        return pipe(prompts, generator=generator, temperature=(3.0, 0.0), **given)

    return {"diffusers": lambda: run(theirs), "impasto": lambda: run(ours)}


def step_of(batch: int, compiled: bool) -> Callable[[], None]:
    """One pretraining step on random tokens and texts."""
    torch.manual_seed(0)
    net = UViT()
    model = net.new(net.sizes["small"])
    optimizers = shared.optimizers(net, model, 2e-3)
    x0, eps = torch.randint(0, CODES, (batch, 1, SIDE, SIDE)), torch.randn(batch, 1, SIDE, SIDE)
    cond = {"encoder_hidden_states": torch.randn(batch, 32, WIDTH), "pooled_text_emb": torch.randn(batch, WIDTH)}
    levels, trained = net.levels(torch.randn(batch)), net.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(list(FAST_ATTENTION)):
            net.loss(trained, x0, eps, levels, cond).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    """Measure both, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"date": str(date.today()), "machine": platform.processor() or platform.machine()}
    result |= {"torch": torch.__version__, "threads": 1, "rounds": args.rounds}
    result |= {"images": args.images, "batch": args.batch}
    measured = {
        f"batch of {args.images} images": (image_arms(args.images), "diffusers"),
        f"pretraining step of {args.batch}": (
            {name: step_of(args.batch, compiled) for name, compiled in (("eager", False), ("compiled", True))},
            "eager",
        ),
    }
    for name, (arms, peer) in measured.items():
        least = least_seconds(arms, args.rounds)
        result[name] = {arm: {"seconds": round(s, 3), "ratio": round(s / least[peer], 3)} for arm, s in least.items()}
        print(name, json.dumps(result[name]), flush=True)
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
