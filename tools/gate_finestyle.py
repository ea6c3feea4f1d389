"""FineStyle's gate: full cells of two styles, regions found, not given; docs/results/finestyle/gate.json.

    python tools/gate_finestyle.py             # runs the missing cells of the campaign, then reports
    python tools/gate_finestyle.py --report    # of the cells that are there

Arms of `impasto reproduce finestyle`: finestyle, whole (the same without data scaling), style-friendly (that training
by ordinary guidance) and base, 3 references x 3 seeds of each style; the cells are the campaign's own. Of each style:
style at least .6 at .7 of the base's top-5; at least .2 more style than without data scaling in the better of its two
samplings, at no less top-5 than the one with the larger harmonic mean; a leak not above 0 (the base's) by more than two
standard errors.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import concept_index, load_slice, style_index
from impasto.artworld.colours import NAMED
from impasto.cli.console import lines
from impasto.files import atomic
from impasto.judges.model import Judges
from impasto.reproduce.campaign import Campaign, make_campaign, run
from impasto.reproduce.cells import Cell
from impasto.reproduce.finestyle_world import SceneWorld
from impasto.reproduce.page import write_page

STYLES = ("streamline-emojis", "fluent-emoji-3d")
ARMS = ("base", "whole", "style-friendly", "finestyle")
"""style-friendly is the training of whole, sampled by ordinary guidance."""
UNSCALED = ("whole", "style-friendly")
OUT = Path("docs/results/finestyle/gate.json")


def report(campaign: Campaign) -> dict[str, Any]:
    """{style: scores of the arms, and which conditions hold}."""
    result = {}
    for style in STYLES:
        cells = {arm: [c for c in campaign.cells_of(arm, "full") if c.spec["style"] == style] for arm in ARMS}
        there = {
            arm: [campaign.known[c.key]["scores"] for c in own if c.key in campaign.known] for arm, own in cells.items()
        }
        own: dict[str, Any] = {"cells": {arm: [len(there[arm]), len(cells[arm])] for arm in ARMS}}
        if all(there.values()):
            own |= {arm: means(scores) for arm, scores in there.items()}
            own["holds"] = conditions(own)
            own["scenes"] = by_scene(campaign, cells)
        result[style] = own
        print(style, json.dumps(own, indent=1), flush=True)
    return result


def by_scene(campaign: Campaign, cells: dict[str, list[Cell]]) -> dict[str, Any]:
    """{scene: means of the arms over its seeds, whether the gate holds there, and the judges' scores of true images}:
    of the prompts' concepts in that style, on the scene's ground."""
    found: dict[str, Any] = {}
    for arm, own in cells.items():
        for cell in own:
            if cell.key in campaign.known:
                scene = found.setdefault(cell.spec["reference"], {"spec": cell.spec})
                scene.setdefault(arm, []).append(campaign.known[cell.key]["scores"])
    for scene in found.values():
        spec = scene.pop("spec")
        scene |= {arm: means(scene[arm]) for arm in ARMS}
        scene |= {"holds": conditions(scene), "true images": true_scores(spec)}
    return found


def true_scores(spec: Mapping[str, Any]) -> dict[str, float]:
    """Style accuracy and concept top-5 of the true images of a cell's prompts on the ground of its scene."""
    labels = [own[0] for own in spec["asked"]]
    pixels = [
        load_slice(styles=[spec["style"]]).select(concepts=[label]).rgb(NAMED[spec["scene"]["ground"]])[0]
        for label in labels
    ]
    images, judges = [Image.fromarray(one) for one in pixels], Judges.load()
    style = judges.style(images).argmax(1) == style_index(spec["style"])
    best = judges.concept(images).topk(5).indices.tolist()
    top5 = [concept_index(label) in row for label, row in zip(labels, best, strict=True)]
    return {
        "style_accuracy": round(style.double().mean().item(), 3),
        "concept_top5": round(float(np.mean(top5)), 3),
    }


def means(cells: list[dict[str, float]]) -> dict[str, float]:
    """Means over cells; standard error of the leak over them."""
    names = ("style_accuracy", "concept_top5", "harmonic_mean", "leak", "leak_shown", "region_iou")
    found = {name: round(float(np.mean([c[name] for c in cells])), 3) for name in names if name in cells[0]}
    leaks = [cell["leak"] for cell in cells]
    return found | {"leak_standard_error": round(float(np.std(leaks) / max(1, len(leaks) - 1) ** 0.5), 3)}


def conditions(own: dict[str, Any]) -> dict[str, bool]:
    """Which parts of the gate hold."""
    fine, base = own["finestyle"], own["base"]
    most = max(own[arm]["style_accuracy"] for arm in UNSCALED)
    best = max((own[arm] for arm in UNSCALED), key=lambda one: one["harmonic_mean"])
    return {
        "style at least .6": fine["style_accuracy"] >= 0.6,
        "top-5 at least .7 of the base's": fine["concept_top5"] >= 0.7 * base["concept_top5"],
        "style .2 above no data scaling": fine["style_accuracy"] - most >= 0.2,
        "top-5 no less than without data scaling": fine["concept_top5"] >= best["concept_top5"],
        "leak within two standard errors of 0": fine["leak"] <= 2 * fine["leak_standard_error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure FineStyle's gate.")
    parser.add_argument("--base", default="mini-sd15")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    campaign = make_campaign("finestyle", args.base, None, world=SceneWorld(styles=STYLES))
    missing = [c for arm in ARMS for c in campaign.cells_of(arm, "full") if c.key not in campaign.known]
    print(f"{len(missing)} cells to run", flush=True)
    if missing and not args.report:
        campaign.out.mkdir(parents=True, exist_ok=True)
        failed = run(campaign, missing, args.workers, None, lines())
        print(*failed, sep="\n")
        write_page(make_campaign("finestyle", args.base, None))
    result = {"base": args.base, "base_sha256": campaign.family.hash, "styles": report(campaign.reload())}
    with atomic(OUT) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
