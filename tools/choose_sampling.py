"""Settings of an embedded base's sampling, chosen once, for the base alone on the styles that it knows.

    python tools/choose_sampling.py --base mini-sd3 --out docs/results/sampling-mini-sd3.json
    python tools/choose_sampling.py --base mini-muse --checkpoint COPY --steps 16 --guidance 2 3 --temperature 1 3 \\
        --prompts 64 --out docs/results/sampling-mini-muse.json          # COPY: of ~/.cache/impasto/pretrain/mini-muse

Prompts "{label}, {style description}" of train styles x core concepts that are neither evaluation nor reference
concepts, the same starting noise for every pair of values. Rule: the largest harmonic mean of style accuracy and
concept top-5, by the judges. --shift is the scheduler's, sigma' = s sigma / (1 + (s - 1) sigma), above 1 with more of
the steps at high noise; left out, it stays as it is (and U-Nets have none). --temperature and
--token-temperature are for bases of masked tokens: the first one of a linear fall to 0, and that of the softmax that
tokens are drawn from. Trials of the same weights and prompts that --out holds are kept.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np

from impasto.artworld import free_concepts, load_meta
from impasto.artworld.captions import prompt
from impasto.bases import embedded as mini
from impasto.families.base import quiet
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.pretrain.run import DENOISERS, Session
from impasto.pretrain.score import STEPS, judge, sample_images
from impasto.reproduce.small_world import spread, words
from impasto.sampling.sample import Sampling

SEED = 7


def asked(n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(prompts, style ids, concept ids) of n pairs, the train styles in turn."""
    meta = load_meta()
    known, concepts = meta["split"]["train_styles"], spread(free_concepts(), n)
    styles = [known[i % len(known)] for i in range(n)]
    prompts = [prompt(meta["concepts"][c]["label"], words(s)) for c, s in zip(concepts, styles, strict=True)]
    return prompts, np.array(styles), np.array(concepts)


def main() -> None:
    """Draw and score every combination of values; write them and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.5, 4.0, 6.0])
    parser.add_argument("--shift", type=float, nargs="*", default=[])
    parser.add_argument("--temperature", type=float, nargs="*", default=[])
    parser.add_argument("--token-temperature", type=float, nargs="*", default=[])
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS])
    parser.add_argument("--checkpoint", type=Path, help="a copy of a folder of impasto pretrain: its weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    net = DENOISERS[args.base]()
    if args.checkpoint:
        pipe = Session(args.base, args.checkpoint, "cpu", None, 2e-3, 0).pipeline()
        weights = json.loads((args.checkpoint / "state.json").read_text(encoding="utf-8"))
    else:
        with quiet():
            pipe = net.pipeline_class.from_pretrained(mini.ensure(args.base))
        weights = {"weights_sha256": mini.card(args.base)["weights_sha256"]}
    prompts, styles, concepts = asked(args.prompts)
    result: dict[str, Any] = {"base": args.base, **weights, "prompts": args.prompts}
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    same = all(before.get(key) == value for key, value in result.items())
    rows = before["trials"] if same else []
    judges, scheduler = Judges.load(), pipe.scheduler
    optional = [values or [None] for values in (args.shift, args.temperature, args.token_temperature)]
    for steps, shift, temperature, token_temperature, guidance in product(args.steps, *optional, args.guidance):
        settings = {"steps": steps, "guidance": guidance, "shift": shift, "temperature": temperature}
        settings |= {} if token_temperature is None else {"token_temperature": token_temperature}
        if any(settings.items() <= row.items() for row in rows):
            continue
        if shift is not None:
            pipe.scheduler = type(scheduler).from_config(scheduler.config, shift=shift)
        call = dict(net.call) | {"num_inference_steps": steps}
        call |= Sampling(temperature=temperature, token_temperature=token_temperature).token_arguments
        pictures = sample_images(pipe, prompts, SEED, guidance=guidance, call=call)
        scores = judge(judges, pictures, styles, concepts)
        mean = harmonic_mean([scores["style_accuracy"], scores["concept_top5"]])
        rows.append({**settings, "score": mean, **scores})
        print(json.dumps(rows[-1]), flush=True)
        best = max(rows, key=lambda row: row["score"])
        result |= {"trials": rows, "chosen": {key: best[key] for key in settings}}
        with atomic(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("chosen", before.get("chosen"))))


if __name__ == "__main__":
    main()
