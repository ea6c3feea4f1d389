"""Guidance and time shift of an embedded base's sampling, chosen once, for the base alone on the styles that it knows.

    python tools/choose_sampling.py --base mini-sd3 --out docs/results/sampling-mini-sd3.json

Prompts "{label}, {style description}" of train styles x core concepts that are neither evaluation nor reference
concepts, the same starting noise for every pair of values. Rule: the largest harmonic mean of style accuracy and
concept top-5, by the judges. --shift is the scheduler's, sigma' = s sigma / (1 + (s - 1) sigma), above 1 with more of
the steps at high noise; left out, it stays as it is (and U-Nets have none).
"""

import argparse
import json
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
from diffusers import DiffusionPipeline

from impasto.artworld import free_concepts, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import embedded as mini
from impasto.families.base import quiet
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.pretrain.run import DENOISERS
from impasto.pretrain.score import STEPS, judge, sample_images
from impasto.reproduce.small_world import spread, words

SEED = 7


def asked(n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(prompts, style ids, concept ids) of n pairs, the train styles in turn."""
    meta = load_meta()
    known, concepts = meta["split"]["train_styles"], spread(free_concepts(), n)
    styles = [known[i % len(known)] for i in range(n)]
    prompts = [prompt(meta["concepts"][c]["label"], words(s)) for c, s in zip(concepts, styles, strict=True)]
    return prompts, np.array(styles), np.array(concepts)


def main() -> None:
    """Draw and score every pair of values; write them and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.5, 4.0, 6.0])
    parser.add_argument("--shift", type=float, nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(mini.ensure(args.base))
    prompts, styles, concepts = asked(args.prompts)
    judges, call = Judges.load(), DENOISERS[args.base]().call
    scheduler, rows = pipe.scheduler, []
    for shift in args.shift or [scheduler.config.get("shift")]:
        if args.shift:
            pipe.scheduler = type(scheduler).from_config(scheduler.config, shift=shift)
        for guidance in args.guidance:
            pictures = sample_images(pipe, prompts, SEED, steps=args.steps, guidance=guidance, call=call)
            scores = judge(judges, pictures, styles, concepts)
            mean = harmonic_mean([scores["style_accuracy"], scores["concept_top5"]])
            rows.append({"guidance": guidance, "shift": shift, "score": mean, **scores})
            print(json.dumps(rows[-1]), flush=True)
    best = max(rows, key=lambda row: row["score"])
    told = {"base": args.base, "weights_sha256": mini.card(args.base)["weights_sha256"], "steps": args.steps}
    told |= {"prompts": args.prompts, "trials": rows, "chosen": {key: best[key] for key in ("guidance", "shift")}}
    with atomic(args.out) as path:
        path.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told["chosen"]))


if __name__ == "__main__":
    main()
