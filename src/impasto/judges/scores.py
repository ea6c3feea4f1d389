"""Export and measure the trained judges: `python -m impasto.judges.scores [--out DIR]`.

Scores are on true images that neither judge was trained on: the cells held out at random, and the cells of a primary
held-out style with an evaluation concept; scenes are composed from the same cells. They are written to card.json beside
the weights and to docs/results/judges.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from impasto.artworld.world import ArtWorld, load
from impasto.files import MODELS, atomic, cache_dir
from impasto.judges.model import FOLDER, Judges, describe
from impasto.judges.training import (
    HELD_OUT_SHARE,
    PLANS,
    SEED,
    checkpoint_info,
    compose,
    ground_colour,
    held_out,
    new_net,
    scatter,
)

FALSE_POSITIVES = 0.01  # per absent concept, at the threshold
SCENES = 1500
Scores = dict[str, Any]


# Export


def export(source: Path, out: Path, pictures: ArtWorld) -> dict[str, Any]:
    """Write the averaged weights of both checkpoints (fp16; norms fp32) and a card without scores; returns the card."""
    meta = pictures.meta
    card: dict[str, Any] = {
        "what": "judges of style and concept: nothing is trained against them, choices by them are on secondary styles",
        "date": datetime.now(UTC).date().isoformat(),
        "style_names": meta["style_names"],
        "kinds": [style["kind"] for style in meta["styles"]],
        "labels": [concept["label"] for concept in meta["concepts"]],
        "concept_threshold": 0.5,
    }
    for which, plan in PLANS.items():
        state = source / which / "state.safetensors"
        net = new_net(plan.net)
        tensors = load_file(state)
        average = {name[8:]: value for name, value in tensors.items() if name.startswith("average.")}
        net.load_state_dict(average)
        keep = {n: v for n, v in average.items() if not n.endswith("num_batches_tracked")}
        with atomic(out / f"{which}.safetensors") as name:
            save_file({n: (v.half() if v.ndim > 1 else v.float()).contiguous() for n, v in keep.items()}, name)
        card[which] = describe(net, out / f"{which}.safetensors")
        card[which]["training"] = {**asdict(plan), **checkpoint_info(state), "held_out_share": HELD_OUT_SHARE}
        card[which]["training"].pop("net")
    save_card(out, card)
    random, primary = held_out(pictures)
    cells = {"random": _cells(pictures, random), "primary": _cells(pictures, primary)}
    with atomic(out / "held_out.json") as name:
        name.write_text(json.dumps({"seed": SEED, **cells}, separators=(",", ":")) + "\n", encoding="utf-8")
    return card


def save_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json, atomically."""
    with atomic(folder / "card.json") as name:
        name.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _cells(pictures: ArtWorld, mask: np.ndarray) -> dict[str, list[str]]:
    """Held-out cells as style name -> hex codes of the concepts."""
    names, concepts = pictures.meta["style_names"], pictures.meta["concepts"]
    rows = np.flatnonzero(mask)
    return {
        name: [concepts[pictures.concept_id[i]]["hex"] for i in rows if pictures.style_id[i] == s]
        for s, name in enumerate(names)
    }


# Single images


def single_scores(judges: Judges, images: Tensor, style: np.ndarray, concept: np.ndarray) -> dict[str, np.ndarray]:
    """Per image: style and kind correct (0/1), probability of the true style, concept in top-1, in top-5 (0/1).

    images float [n, 3, H, W] in [0, 1]; true style and concept ids [n].
    """
    p, kind, q = judges.style(images), judges.kind(images), judges.concept(images)
    s, c = torch.as_tensor(style, dtype=torch.long), torch.as_tensor(concept, dtype=torch.long)
    true_kind = torch.tensor([judges.kind_names.index(judges.kinds[int(i)]) for i in s])
    rank = (q >= q.gather(1, c[:, None])).sum(1)
    columns = {
        "style_accuracy": p.argmax(1) == s,
        "kind_accuracy": kind.argmax(1) == true_kind,
        "style_probability": p.gather(1, s[:, None])[:, 0],
        "concept_top1": rank <= 1,
        "concept_top5": rank <= 5,
        "concept_detected": q.gather(1, c[:, None])[:, 0] >= judges.concept_threshold,
    }
    return {name: value.double().numpy() for name, value in columns.items()}


def means(columns: dict[str, np.ndarray], chosen: np.ndarray) -> Scores:
    """The mean of each column over the chosen images, and their number."""
    return {"n": int(chosen.sum())} | {name: round(float(v[chosen].mean()), 3) for name, v in columns.items()}


def on_white(pictures: ArtWorld, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Images over white, float [n, 3, 128, 128] in [0, 1]."""
    flat = [np.asarray(compose([pictures.rgba[i]], [128], [(0, 0)], 128, (255, 255, 255))) for i in rows]
    return torch.from_numpy(np.stack(flat)).permute(0, 3, 1, 2).float() / 255


# Scenes


def true_scenes(pictures: ArtWorld, rows: np.ndarray, count: int, seed: int) -> tuple[Tensor, list[list[tuple]]]:
    """Scenes of one to four of the images `rows`, each scene in one style, a third on coloured backgrounds.

    Returns images float [count, 3, 128, 128] in [0, 1] and per scene [(concept id, style id, side / canvas)].
    """
    rng = np.random.default_rng((SEED, seed))
    images, objects = [], []
    for _ in range(count):
        first = int(rng.choice(rows))
        alike = rows[(pictures.style_id[rows] == pictures.style_id[first]) & (rows != first)]
        more = min(int(rng.integers(4)), len(alike))
        members = [first, *map(int, rng.choice(alike, more, replace=False))]
        sides, corners = scatter(rng, len(members), 128)
        art = [pictures.rgba[i] for i in members]
        images.append(np.asarray(compose(art, sides, corners, 128, ground_colour(rng, 1 / 3))))
        ids = [(int(pictures.concept_id[i]), int(pictures.style_id[i])) for i in members]
        objects.append([(c, s, side / 128) for (c, s), side in zip(ids, sides, strict=True)])
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, objects


def absent_mask(objects: list[list[tuple]], classes: int) -> np.ndarray:
    """bool [scenes, classes]: concepts absent from a scene."""
    absent = np.ones((len(objects), classes), bool)
    for row, inside in zip(absent, objects, strict=True):
        row[[concept for concept, _, _ in inside]] = False
    return absent


def scene_scores(q: np.ndarray, objects: list[list[tuple]], threshold: float) -> Scores:
    """Recall per present concept and false positives per absent one, from probabilities q [scenes, classes]."""
    hits = [(q[i, c] >= threshold, side, len(inside)) for i, inside in enumerate(objects) for c, _, side in inside]
    hit, side, count = (np.array(column) for column in zip(*hits, strict=True))
    result = {
        "scenes": len(objects),
        "recall": hit.mean(),
        "false_positives": (q[absent_mask(objects, q.shape[1])] >= threshold).mean(),
    }
    for low, high in ((0.25, 0.4), (0.4, 0.6), (0.6, 1.01)):
        chosen = (side >= low - 0.01) & (side < high)
        result[f"recall_side_{low:.2f}_{min(high, 1.0):.2f}"] = hit[chosen].mean() if chosen.any() else None
    for n in range(1, 5):
        result[f"recall_{n}_objects"] = hit[count == n].mean() if (count == n).any() else None
    return {name: round(float(v), 4) if isinstance(v, float) else v for name, v in result.items()}


# All scores


def measure(judges: Judges, pictures: ArtWorld) -> Scores:
    """All scores; sets the judges' `concept_threshold`, calibrated on a separate set of scenes."""
    random, primary = held_out(pictures)
    meta = pictures.meta
    primaries = [meta["style_names"].index(name) for name in meta["recommended"]["heldout_styles"]]
    rows = np.flatnonzero(random | primary)
    scene_rows = np.flatnonzero(random)
    images, objects = true_scenes(pictures, scene_rows, SCENES, 1)
    q = judges.concept(images).numpy()
    judges.concept_threshold = float(np.quantile(q[absent_mask(objects, q.shape[1])], 1 - FALSE_POSITIVES))

    style, concept = pictures.style_id[rows], pictures.concept_id[rows]
    columns = single_scores(judges, on_white(pictures, rows), style, concept)
    is_random, is_primary_style = random[rows], np.isin(style, primaries)
    scores: Scores = {
        "random cells": means(columns, is_random),
        "primary styles": means(columns, is_primary_style),
        "per style": {name: means(columns, style == s) for s, name in enumerate(meta["style_names"])},
    }
    scores["primary, evaluation concepts"] = {
        meta["style_names"][s]: means(columns, primary[rows] & (style == s)) for s in primaries
    }
    images, objects = true_scenes(pictures, scene_rows, SCENES, 2)
    scores["scenes"] = {"all": scene_scores(judges.concept(images).numpy(), objects, judges.concept_threshold)}
    for s in primaries:
        images, objects = true_scenes(pictures, rows[style == s], SCENES // 5, 3)
        q = judges.concept(images).numpy()
        scores["scenes"][meta["style_names"][s]] = scene_scores(q, objects, judges.concept_threshold)
    everything = [single_scores(judges, on_white(pictures, part), *_ids(pictures, part)) for part in _parts(pictures)]
    columns = {name: np.concatenate([part[name] for part in everything]) for name in everything[0]}
    scores["all pictures, per style"] = {
        name: means(columns, pictures.style_id == s) for s, name in enumerate(meta["style_names"])
    }
    scores["after the autoencoder"] = coded_scores(judges, pictures, rows, MODELS / "autoencoder")
    return scores


def _parts(pictures: ArtWorld) -> list[np.ndarray]:
    return np.array_split(np.arange(len(pictures)), 16)


def _ids(pictures: ArtWorld, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pictures.style_id[rows], pictures.concept_id[rows]


@torch.no_grad()
def coded_scores(judges: Judges, pictures: ArtWorld, rows: np.ndarray, folder: Path) -> Scores | None:
    """The scores of the held-out images after the autoencoder (mean latents), per style; None without autoencoder."""
    if not (folder / "config.json").is_file():
        return None
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder).float().eval()
    images = on_white(pictures, rows)
    coded = [vae.decode(vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5 for x in images.split(32)]
    style, concept = _ids(pictures, rows)
    columns = single_scores(judges, torch.cat(coded).clamp(0, 1), style, concept)
    whole = means(columns, np.ones(len(rows), bool))
    names = pictures.meta["style_names"]
    return {"all": whole} | {name: means(columns, style == s) for s, name in enumerate(names)}


# The page

COLUMNS = ("n", "style_accuracy", "style_probability", "kind_accuracy", "concept_top1", "concept_top5")


def page(card: dict[str, Any]) -> str:
    """The text of docs/results/judges.md from a card with scores."""
    scores = card["scores"]
    trained = {which: card[which]["training"] for which in ("style", "concept")}
    lines = [
        "# The judges",
        "",
        f"{card['date']}. Made by `python -m impasto.judges.scores --page docs/results/judges.md` from the",
        "checkpoints that",
        "`python -m impasto.judges.training --which style|concept --minutes M --resume` left; the same",
        "numbers are in `src/impasto/models/judges/card.json`.",
        "",
        "Style judge: {:,} parameters, {:,} pictures in {:.0f} CPU minutes.".format(
            card["style"]["parameters"], trained["style"]["seen"], trained["style"]["seconds"] / 60
        ),
        "Concept judge: {:,} parameters, {:,} pictures in {:.0f} CPU minutes.".format(
            card["concept"]["parameters"], trained["concept"]["seen"], trained["concept"]["seconds"] / 60
        ),
        "",
        f"Held out from both (`held_out.json`): {scores['random cells']['n']:,} cells at random (8 %), and every",
        "cell of a primary held-out style with an evaluation concept. All numbers below are on pictures that were",
        "never seen, except the table that says otherwise.",
        "",
        *_gates(card),
        "",
        "## Single pictures, held-out cells",
        "",
        *_table(
            {"all random cells": scores["random cells"], "the three primary styles": scores["primary styles"]}
            | scores["per style"]
        ),
        "",
        "Primary held-out styles, evaluation concepts only:",
        "",
        *_table(scores["primary, evaluation concepts"]),
        "",
        "## True scenes of held-out cells",
        "",
        f"Threshold {card['concept_threshold']:.4f}: 1 % false positives per absent concept on calibration scenes; the",
        "table is of other scenes (one style each, 1-4 objects at 25-100 % size, a third on coloured grounds).",
        "",
        *_table(scores["scenes"], tuple(scores["scenes"]["all"])),
        "",
        "## What they give the true pictures",
        "",
        "All pictures of each style, nine tenths of them seen in training: the row beside which a score of generated",
        "pictures of a known cell is shown. For held-out cells, use the first table.",
        "",
        *_table(scores["all pictures, per style"]),
    ]
    if scores["after the autoencoder"]:
        lines += ["", "## Held-out cells after the autoencoder", "", *_table(scores["after the autoencoder"])]
    return "\n".join(lines) + "\n"


def _notes(path: Path) -> str:
    """The hand-written end of the previous page, from "## Notes" on."""
    _, mark, notes = (path.read_text(encoding="utf-8") if path.is_file() else "").partition("\n## Notes")
    return mark + notes


def _gates(card: dict[str, Any]) -> list[str]:
    """Targets (issue 3) and measured scores."""
    scores, gates = card["scores"], [("style accuracy, random cells", 0.80, card["scores"]["random cells"])]
    primaries = list(scores["primary, evaluation concepts"])
    gates += [(f"style accuracy, {name}", 0.95, scores["per style"][name]) for name in primaries]
    rows = [(what, target, row["style_accuracy"]) for what, target, row in gates]
    rows.append(("concept top-5, random cells", 0.85, scores["random cells"]["concept_top5"]))
    rows.append(("recall per present concept, true scenes", 0.60, scores["scenes"]["all"]["recall"]))
    body = [
        f"| {what} | {target:.2f} | {value:.3f} | {'yes' if value >= target else 'NO'} |"
        for what, target, value in rows
    ]
    return ["| | target | measured | met |", "|---|---:|---:|---|", *body]


def _table(rows: dict[str, Scores], columns: tuple[str, ...] = COLUMNS) -> list[str]:
    heads = [column.replace("_", " ") for column in columns]
    body = [[name, *("–" if row[c] is None else f"{row[c]:g}" for c in columns)] for name, row in rows.items()]
    return [f"| {' | '.join(cells)} |" for cells in (["", *heads], ["---", *["---:"] * len(heads)], *body)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export and measure the judges.")
    parser.add_argument("--source", type=Path, default=cache_dir("judges"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--page", type=Path, help="also write the page, e.g. docs/results/judges.md")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = load()
    card = export(args.source, args.out, pictures)
    judges = Judges.load(args.out)
    card["scores"] = measure(judges, pictures)
    card["concept_threshold"] = round(judges.concept_threshold, 6)
    save_card(args.out, card)
    if args.page:
        with atomic(args.page) as name:
            name.write_text(page(card) + _notes(args.page), encoding="utf-8")


if __name__ == "__main__":
    main()
