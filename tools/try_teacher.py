"""What a teacher is worth: the same steps from the same checkpoint, with and without one, measured on true targets.

    python tools/try_teacher.py CHECKPOINT_FOLDER --steps 150 --shares 0 0.75 1

Each arm goes on from a copy of the checkpoint with the same batches, its rate rising to half and falling to zero again.
Measured: the loss against the pictures themselves (no teacher) on batches that no arm trained on, and `hears`.
"""

import argparse
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch

from impasto.pretrain import base as shared
from impasto.pretrain.pool import build_pool
from impasto.pretrain.run import Session, known_concepts

SEED, VALIDATION = 77, 10**6


@torch.no_grad()
def true_loss(run: Session, bank: shared.Bank, batches: int = 8) -> float:
    """Mean loss of the weights as they are against the pictures themselves."""
    losses = []
    for i in range(batches):
        x0, ids, z, eps = shared.draw(bank, 96, SEED, VALIDATION + i, shared.SHARES)
        with torch.autocast(torch.device(run.device).type, torch.bfloat16):
            losses.append(float(run.net.loss(run.model, x0, eps, run.net.levels(z), run.net.text(run.tower, ids))))
    return sum(losses) / len(losses)


def main() -> None:
    """Train the arms one after the other and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.75])
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    args = parser.parse_args()
    bank = None
    for share in args.shares:
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(args.checkpoint, Path(scratch) / "run")
            run = Session(args.base, Path(scratch) / "run", "cpu", None, args.rate, 0)
        if bank is None:
            pool = build_pool(known_concepts("core_everywhere"), seed=SEED)
            bank = shared.make_bank(pool, run.vae, run.tokenizer, SEED)
            print(
                json.dumps({"share": None, "true_loss": round(true_loss(run, bank), 5), **run.caption_gap(bank)}),
                flush=True,
            )
        if share:
            run.learn_from("mini-sd3", share)
        objective = partial(run.net.loss, run.model)
        for step in range(args.steps):
            x0, ids, z, eps = shared.draw(bank, 96, SEED, step, shared.SHARES)
            factor = min(1.0, 2 * (step + 1) / args.steps, 2 - 2 * step / args.steps)
            for optimizer, part in zip(run.optimizers, (1.0, 0.5), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = args.rate * part * factor
            run.update(objective, x0, ids, z, eps, False, 0.9)
        row = {"share": share, "true_loss": round(true_loss(run, bank), 5), **run.caption_gap(bank)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
