"""What style guidance costs: seconds per image, with and without, in one process and in turns.

    python benchmarks/style_guidance_speed.py --out benchmarks/results/style_guidance_speed.json

One random LoRA of rank 32 on the attention (the time does not depend on its values), as many sampling steps as the
base's card says, one thread. Arms:

    plain       guidance alone: S(y), S(n), two predictions a step
    guided      with style guidance: S(y), S(n), B(y) in one call
    two calls   the same as one call with the adapters and one without, as for adapters that are not plain LoRA
    reward      reward guidance: S(y), B(y), B(n) in one call
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from impasto.adapters import lora
from impasto.adapters.config import LoRA
from impasto.bases import loader
from impasto.families.base import quiet
from impasto.files import atomic
from impasto.guidance import style_guidance
from impasto.sampling.sample import Sampling, encoder, sample

ARMS = {
    "plain": Sampling(style_guidance=0.0, negative=""),
    "guided": Sampling(style_guidance=2.0, negative="ink drawing"),
    "two calls": Sampling(style_guidance=2.0, negative="ink drawing"),
    "reward": Sampling(guidance=1.0, style_guidance=1.0, base_guidance=3.0, negative=""),
}


def measure(base: str, batch: int, rounds: int, steps: int | None) -> dict[str, Any]:
    """Median seconds per image of each arm, and its ratio to plain."""
    family = loader.load(base, device="cpu", precision="fp32")
    lora.add(family, LoRA(), seed=0)
    with quiet():
        pipe = family.pipeline(**{family.part: family.denoiser})
    encode, seconds = encoder(family, pipe, batch), {arm: [] for arm in ARMS}
    jobs = [(f"a cat {i}, ink drawing", i) for i in range(batch)]
    for turn in range(rounds + 1):
        for arm, sampling in ARMS.items():
            is_plain = style_guidance.is_plain_lora if arm != "two calls" else lambda denoiser: False
            filled = Sampling(**{**vars(sampling), "batch": batch, "steps": steps}).on(family)
            with mock.patch.object(style_guidance, "is_plain_lora", is_plain), torch.no_grad():
                start = time.perf_counter()
                list(sample(family, pipe, jobs, encode, filled, {}))
                if turn:  # the first one warms up
                    seconds[arm].append((time.perf_counter() - start) / batch)
    middle = {arm: median(times) for arm, times in seconds.items()}
    return {arm: {"seconds": round(s, 4), "ratio": round(s / middle["plain"], 3)} for arm, s in middle.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=["mini-sd3", "mini-sd15"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"date": str(date.today()), "machine": platform.processor() or platform.machine()}
    result |= {"torch": torch.__version__, "threads": 1, "rounds": args.rounds}
    for base in args.base:
        for batch in args.batch:
            result[f"{base}, batch {batch}"] = measure(base, batch, args.rounds, args.steps)
            print(base, batch, json.dumps(result[f"{base}, batch {batch}"]), flush=True)
    with atomic(args.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
