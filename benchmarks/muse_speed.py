"""mini-muse: an image beside diffusers' own pipeline, and a pretraining step eager and compiled; in turns.

    python benchmarks/muse_speed.py --out benchmarks/results/muse_speed.json

One thread. Seconds are the least CPU seconds over all rounds: other work on the machine can only add to them. Images:
16 steps, guidance 3, batches of `--images`, the same prompts. The step: that of `impasto pretrain` on `--batch` images.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedPipeline
from styleinject_speed import least_seconds

from impasto.bases import embedded as mini
from impasto.families.muse import MusePipeline
from impasto.files import atomic
from impasto.pretrain.clip import tokens
from impasto.pretrain.image_tokenizer import CODES, SIDE
from impasto.pretrain.run import Session


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


def step_arms(folder: Path, batch: int) -> dict[str, Callable[[], Any]]:
    """A step of `impasto pretrain mini-muse` on random tokens, eager and compiled. folder: where there is no state."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, CODES, (batch, 1, SIDE, SIDE), generator=g)
    eps, z = torch.randn(x0.shape, generator=g), torch.randn(batch, generator=g)

    def arm(compiled: bool) -> Callable[[], Any]:
        run = Session("mini-muse", folder, "cpu", None, 2e-3, 0)
        objective = partial(run.net.loss, run.net.compile(run.model) if compiled else run.model)
        ids = tokens(run.tokenizer, ["a rocket in flat style"] * batch)
        return lambda: run.update(objective, x0, ids, z, eps, long=False, ema=0.995)

    return {"eager": arm(False), "compiled": arm(True)}


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
    with tempfile.TemporaryDirectory() as scratch:
        measured = {
            f"batch of {args.images} images": (image_arms(args.images), "diffusers"),
            f"pretraining step of {args.batch}": (step_arms(Path(scratch), args.batch), "eager"),
        }
    for name, (arms, peer) in measured.items():
        least = least_seconds(arms, args.rounds)
        result[name] = {arm: {"seconds": round(s, 3), "ratio": round(s / least[peer], 3)} for arm, s in least.items()}
        print(name, json.dumps(result[name]), flush=True)
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
