"""Compare learning rates, rows of the token and guidance of InstaStyle on secondary styles: 4 settings x 2 styles.

    python tools/choose_instastyle.py [--styles icon-park symbola] [--out docs/results/instastyle/choice.json]

One reference of each style, ten concepts that no claim uses. Chosen of the refinements is the one with the highest
probability of the style among those that keep 90 % of the concept top-5 without refinement, else that with the largest
harmonic mean of both; of the guidances (no training) the one with the largest harmonic mean. The choice goes into
`impasto.reproduce.instastyle_rates` and the recipe by hand.
"""

import argparse
import json
from pathlib import Path
from statistics import harmonic_mean

from impasto.files import atomic
from impasto.reproduce.cells import Cell, settings_of
from impasto.reproduce.claims import Arm
from impasto.reproduce.instastyle import BASE, noise, refined, small_world
from impasto.reproduce.runner import BaseSpec, build_spec, run_cell

KEPT = 0.9
REFINED = {
    "lr 1e-4": refined("", "secondary", settings={"lr": 1e-4}),
    "lr 1e-3": refined("", "secondary", settings={"lr": 1e-3}),
    "lr 1e-4, one row": refined("", "secondary", settings={"lr": 1e-4, "text.rows": "1"}),
}
GUIDED = {"guidance 2.5": noise("", "secondary"), "guidance 4": noise("", "secondary", guidance=4.0)}
NAMES = ("style_accuracy", "style_probability", "style_cosine", "concept_top5", "palette", "ground")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--styles", nargs="+", default=["icon-park", "symbola"])
    parser.add_argument("--out", type=Path, default=Path("docs/results/instastyle/choice.json"))
    args = parser.parse_args()
    place = BaseSpec(args.base)
    rows = {}
    for name, arm in {**GUIDED, **REFINED}.items():
        rows[name] = scores(arm, name, args.styles, place)
        print(name, rows[name], flush=True)
    chosen = {
        "guidance": max(GUIDED, key=lambda name: mean_of(rows[name])),
        "refinement": choose({name: rows[name] for name in REFINED}, rows["guidance 2.5"]["concept_top5"]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(args.out) as file:
        table = {"base": args.base, "styles": args.styles, "rows": rows, "chosen": chosen}
        file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(chosen)


def scores(arm: Arm, name: str, styles: list[str], place: BaseSpec) -> dict[str, float]:
    """Mean scores over the secondary units of these styles."""
    world, family = small_world(), place.family()
    spec = settings_of(arm, family, place.base)
    units = {u: own for u, own in world.units("smoke", arm.where).items() if own["style"] in styles}
    found = [
        run_cell(Cell(name, unit, build_spec(world, family, spec, own)), world, place) for unit, own in units.items()
    ]
    return {metric: sum(one["scores"][metric] for one in found) / len(found) for metric in NAMES}


def mean_of(row: dict[str, float]) -> float:
    return harmonic_mean((row["style_probability"], row["concept_top5"]))


def choose(rows: dict[str, dict[str, float]], text: float) -> str:
    """See the module's docstring. text: concept top-5 without refinement."""
    kept = {name: own for name, own in rows.items() if own["concept_top5"] >= KEPT * text}
    if kept:
        return max(kept, key=lambda name: kept[name]["style_probability"])
    return max(rows, key=lambda name: mean_of(rows[name]))


if __name__ == "__main__":
    main()
