"""Choose the learning rate of each kind of arm that trains on a folder, by style at equal text on secondary styles.

    python tools/choose_folder_rates.py [--cells smoke] [--out docs/results/styleinject/rates.json]

Every kind is trained for 150 steps of 8 on 64 images of a secondary style, and prompted with concepts that it was not
trained on. Chosen is the rate with the highest style accuracy among those that keep 90 % of the base's concept top-5
(ties: the higher probability of the style), else that with the largest harmonic mean of both; the loss on unseen
images is a bad rule. The choice goes into `impasto.reproduce.styleinject_rates` by hand.
"""

import argparse
import json
from pathlib import Path
from statistics import harmonic_mean

from impasto.reproduce.cells import Cell, settings_of
from impasto.reproduce.claims import Arm
from impasto.reproduce.runner import BaseSpec, build_spec, run_cell
from impasto.reproduce.styleinject import BASE, FULL, SINGLE_STEPS, lora, small_world, styleinject

KEPT = 0.9
GRID = {
    "styleinject": (styleinject(4), (5e-4, 1e-3, 2e-3)),
    "lora": (lora(24), (5e-4, 1e-3, 2e-3)),
    "lora, large": (lora(96), (3e-4, 5e-4, 1e-3)),
    "full": (FULL, (3e-5, 5e-5, 1e-4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="smoke")
    parser.add_argument("--out", type=Path, default=Path("docs/results/styleinject/rates.json"))
    args = parser.parse_args()
    world, place = small_world(), BaseSpec(BASE)
    base, rows = scores(Arm("base", how="prompt", where="secondary"), "base", args.cells, world, place), {}
    for kind, (settings, rates) in GRID.items():
        for rate in rates:
            own = {**settings, "lr": rate, "steps": SINGLE_STEPS}
            arm = Arm(kind, own, how="folder", where="secondary")
            rows.setdefault(kind, {})[f"{rate:g}"] = scores(arm, f"{kind} {rate:g}", args.cells, world, place)
            print(kind, rate, rows[kind][f"{rate:g}"], flush=True)
    chosen = {kind: choose(own, base["concept_top5"]) for kind, own in rows.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table = {"cells": args.cells, "base": base, "rates": rows, "chosen": chosen}
    args.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(chosen)


def scores(arm: Arm, name: str, cells: str, world, place: BaseSpec) -> dict[str, float]:
    """Mean scores over the secondary units."""
    family = place.family()
    spec = settings_of(arm, family, place.base)
    units = world.units(cells, arm.where)
    found = [
        run_cell(Cell(name, unit, build_spec(world, family, spec, own)), world, place) for unit, own in units.items()
    ]
    names = ("style_accuracy", "style_probability", "concept_top5", "kid")
    return {metric: sum(one["scores"][metric] for one in found) / len(found) for metric in names}


def choose(rows: dict[str, dict[str, float]], text: float) -> float:
    """The rate with most style among those that keep the text; where none does, that with the largest harmonic mean of
    style accuracy and concept top-5."""
    kept = {rate: own for rate, own in rows.items() if own["concept_top5"] >= KEPT * text}
    if kept:
        return float(max(kept, key=lambda rate: (kept[rate]["style_accuracy"], kept[rate]["style_probability"])))
    means = {rate: harmonic_mean((own["style_accuracy"], own["concept_top5"])) for rate, own in rows.items()}
    return float(max(means, key=lambda rate: means[rate]))


if __name__ == "__main__":
    main()
