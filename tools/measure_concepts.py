"""How well the region finders find the things of a scene: docs/results/finestyle/concepts.json.

    python tools/measure_concepts.py run --split secondary --scenes 8     # rows into a .jsonl; resumes
    python tools/measure_concepts.py report                               # concepts.json and a table

Scenes of three things in one style (`artworld.scenes.reference_scene`), 256 px, on white, coloured or dark grounds;
dark ones of styles with colours only (black ink on black cannot be seen). Train and secondary styles: things that are
neither evaluation nor reference concepts; primary styles: reference concepts. Captions are "a rocket, a teapot and a
lion, {style description}" without the ground, which the finder has to bear.

    hit       share of things whose region's centre is in their true box
    iou       mean intersection over union with the true box
    proposed  the largest mean IoU that the proposals allow, for `error`: what assignment can lose is the rest
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from impasto.artworld import free_concepts, load, load_meta
from impasto.artworld.captions import join_labels
from impasto.artworld.colours import GROUNDS, NAMED
from impasto.artworld.scenes import reference_scene
from impasto.bases import loader
from impasto.data.concepts import Box, iou, parse_caption
from impasto.files import atomic
from impasto.regions import Search, attention, error
from impasto.regions.proposals import propose

OUT = Path("docs/results/finestyle")
ROWS = OUT / "concepts.jsonl"
SEED, THINGS = 5, 3
ARMS = {
    "error": error.find,
    "error, with style words": partial(error.find, with_style=True),
    "attention": attention.find,
}


def scenes(split: str, ground: str, count: int) -> Iterator[tuple[dict[str, Any], Image.Image, list[Box], str, str]]:
    """(what identifies it, image, true boxes, caption, style words) of `count` scenes per style."""
    meta = load_meta()
    for style in meta["split"][f"{split}_styles"]:
        if ground == "dark" and not meta["styles"][style]["colour"]:
            continue
        pool = meta["split"]["reference_concepts"] if split == "primary" else free_concepts()
        pool = [concept for concept in pool if concept in set(meta["drawn"][style])]
        words = meta["styles"][style]["descriptions"][0]
        for i in range(count):
            rng = np.random.default_rng([SEED, style, i])
            things = [int(concept) for concept in rng.choice(pool, THINGS, replace=False)]
            colour = GROUNDS[ground][int(rng.integers(len(GROUNDS[ground])))]
            world = load(styles=[style], concepts=things)
            scene = reference_scene(world, style, things, seed=1000 * style + i, background=NAMED[colour])
            labels = [meta["concepts"][concept]["label"] for concept in things]
            key = {"split": split, "style": meta["style_names"][style], "ground": colour, "scene": i, "things": labels}
            boxes = [tuple(box) for box in scene.boxes.tolist()]
            yield key, Image.fromarray(scene.rgb), boxes, f"{join_labels(labels)}, {words}", words


def score(found: list[Box], true: list[Box]) -> dict[str, Any]:
    """Hit and IoU of each thing."""
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in found]
    hits = [t[0] <= x < t[2] and t[1] <= y < t[3] for (x, y), t in zip(centres, true, strict=True)]
    return {"hit": hits, "iou": [round(iou(a, b), 4) for a, b in zip(found, true, strict=True)]}


def best_iou(image: Image.Image, true: list[Box]) -> float:
    """The largest mean IoU of an assignment of the proposals."""
    boxes = [proposal.box for proposal in propose(image, len(true))]
    table = np.array([[iou(box, t) for t in true] for box in boxes])
    rows = set(np.argsort(-table, axis=0)[: len(true)].ravel().tolist())
    every = permutations(sorted(rows), len(true))
    return max((float(table[list(some), range(len(true))].mean()) for some in every), default=0.0)


def run(bases: list[str], finders: list[str], split: str, grounds: list[str], count: int, precision: str) -> None:
    known = {json.dumps(row["key"]) for row in read_rows()}
    for base in bases:
        family = loader.load(base, device="cpu", precision=precision)
        for ground in grounds:
            for name, image, true, caption, words in scenes(split, ground, count):
                for finder in finders:
                    key = {"base": base, "base_sha256": family.hash, "finder": finder, "on": ground, **name}
                    if json.dumps(key) in known:
                        continue
                    search = Search(image, caption, parse_caption(caption, words), base, given=family)
                    regions = ARMS[finder](search)
                    row = {"key": key, **score([region.box for region in regions if region.box], true)}
                    if finder != "attention":
                        row["proposed"] = round(best_iou(image, true), 4)
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            print(base, split, ground, flush=True)


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


def report() -> None:
    """concepts.json, and its table on standard output."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in read_rows():
        groups.setdefault(tuple(row["key"][name] for name in ("base", "finder", "split", "on")), []).append(row)
    cells = []
    for names, rows in sorted(groups.items()):
        hits, overlaps = np.concatenate([row["hit"] for row in rows]), np.concatenate([row["iou"] for row in rows])
        by_style: dict[str, list[bool]] = {}
        for row in rows:
            by_style.setdefault(row["key"]["style"], []).extend(row["hit"])
        cell: dict[str, Any] = dict(zip(("base", "finder", "split", "ground"), names, strict=True)) | {
            "things": len(hits)
        }
        cell |= {"hit": round(float(hits.mean()), 3), "iou": round(float(overlaps.mean()), 3)}
        scene_hits = [float(np.mean(row["hit"])) for row in rows]
        cell["hit_standard_error"] = round(float(np.std(scene_hits) / max(1, len(rows) - 1) ** 0.5), 3)
        if proposed := [row["proposed"] for row in rows if "proposed" in row]:
            cell["proposed_iou"] = round(float(np.mean(proposed)), 3)
        cell["hit_by_style"] = {style: round(float(np.mean(h)), 3) for style, h in sorted(by_style.items())}
        cells.append(cell)
        print(*names, *(f"{name} {cell[name]}" for name in ("things", "hit", "hit_standard_error", "iou")))
    hashes = {row["key"]["base"]: row["key"]["base_sha256"] for row in read_rows()}
    with atomic(OUT / "concepts.json") as temporary:
        temporary.write_text(json.dumps({"base_sha256": hashes, "cells": cells}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the region finders.")
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--base", nargs="+", default=["mini-sd15", "mini-sd3"])
    parser.add_argument("--finder", nargs="+", choices=tuple(ARMS), default=["error", "attention"])
    parser.add_argument("--split", choices=("train", "secondary", "primary"), default="secondary")
    parser.add_argument("--ground", nargs="+", choices=tuple(GROUNDS), default=list(GROUNDS))
    parser.add_argument("--scenes", type=int, default=8, help="per style and ground")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    if args.action == "run":
        run(args.base, args.finder, args.split, args.ground, args.scenes, args.precision)
    report()


if __name__ == "__main__":
    main()
