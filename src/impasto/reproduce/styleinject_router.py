"""What StyleInject's router tells apart (Fig. 9): nearest neighbours and a map of its outputs.

The outputs s of all routed layers, concatenated, for true images of three styles under noise at three levels. Their
k-nearest-neighbour accuracy (leave one image out, k = 5, Euclidean) is measured for the style and for the concept's
group, against shuffled labels and against a router as it was initialised.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impasto.adapters.styleinject import tuner as _tuner  # noqa: F401 - registers the layers
from impasto.adapters.styleinject.layers import StyleInjectLayer
from impasto.artworld import load_meta
from impasto.families.base import Condition, Family
from impasto.noise.random import generator
from impasto.report import plots
from impasto.reproduce import image_sets
from impasto.reproduce.folder_jobs import store_scores, trained
from impasto.reproduce.runner import BaseSpec
from impasto.reproduce.tsne import tsne
from impasto.styles.load import load_style

LEVELS = (-2.0, 0.0, 2.0)
"""log-SNR at which the router is read."""
NEIGHBOURS = 5
CONCEPTS = 36
BATCH = 12


def router_job(spec: Mapping[str, Any], place: BaseSpec, folder: Path, reference: Path | None) -> None:
    """Store the accuracies of a trained router. arm: "shuffled", random labels; "untrained", as initialised."""
    arm, names = spec["arm"], load_meta()["style_names"]
    settings = {**arm["settings"], **({"lr": 1e-12, "steps": 1} if arm.get("untrained") else {})}
    style = trained(spec, place, {"settings": settings, "data": spec["data"]})
    found = image_sets.entries(shown(spec))
    outputs = router_outputs(place.family(), style, spec)
    labels = {
        "knn_style": [names[entry.style] for entry in found],
        "knn_concept": [load_meta()["concepts"][entry.concept]["group"] for entry in found],
    }
    rng = np.random.default_rng(spec["seed"])
    if arm.get("shuffled"):
        labels = {name: [own[i] for i in rng.permutation(len(own))] for name, own in labels.items()}
    same_style = np.array([entry.style for entry in found])
    scores = {"knn_style": neighbour_accuracy(outputs, labels["knn_style"])}
    scores["knn_concept"] = float(
        np.mean(
            [
                neighbour_accuracy(outputs[rows], [labels["knn_concept"][i] for i in np.flatnonzero(rows)])
                for rows in (same_style == one for one in np.unique(same_style))
            ]
        )
    )
    arrays: dict[str, Any] = {"outputs": outputs, **labels}
    np.savez(folder / "router.npz", **arrays)
    store_scores(folder, scores)


def shown(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The set of images that the router sees: evaluation concepts that all styles of the training data have."""
    meta, styles = load_meta(), spec["data"]["styles"]
    common = set.intersection(*(set(image_sets.available(meta["style_names"].index(style))) for style in styles))
    labels = [meta["concepts"][c]["label"] for c in meta["split"]["evaluation_concepts"] if c in common]
    return {**image_sets.styled(styles, (0, 1), CONCEPTS), "concepts": labels}


@torch.no_grad()
def router_outputs(family: Family, style: Path, spec: Mapping[str, Any]) -> np.ndarray:
    """s of all routed layers and levels for each image, float32 (images, layers x levels x n)."""
    pipe = family.pipeline()
    load_style(pipe, style, 1.0)
    denoiser = getattr(pipe, family.part).eval()
    layers = [layer for layer in denoiser.modules() if isinstance(layer, StyleInjectLayer)]
    data = shown(spec)
    x = torch.cat([family.encode_image(pixels(image)).float() for image in image_sets.images(data)])
    captions = [entry.caption for entry in image_sets.entries(data)]
    eps = torch.randn(x.shape[1:], generator=generator(spec["seed"], 0, "router"))  # one noise for all images
    rows = []
    for first in range(0, len(x), BATCH):
        part = slice(first, first + BATCH)
        cond = family.encode_prompt(captions[part])
        rows.append(torch.cat([read(family, denoiser, layers, x[part], eps, level, cond) for level in LEVELS], -1))
    return torch.cat(rows).numpy()


def read(
    family: Family, denoiser: Any, layers: Sequence[Any], x: Tensor, eps: Tensor, level: float, cond: Condition
) -> Tensor:
    """s (B, layers x n) at one noise level."""
    caught: list[Tensor] = []

    def keep(route: Any) -> Any:
        def routed(*args: Any) -> Tensor:
            caught.append(route(*args).float())
            return caught[-1]

        return routed

    for layer in layers:
        layer.route = keep(layer.route)
    lam = torch.full((len(x),), level)
    z = family.schedule.add_noise(x, eps.expand_as(x), lam)
    timestep = family.schedule.timestep(lam)
    denoiser(z.to(denoiser.dtype), timestep, encoder_hidden_states=cond["text"].to(denoiser.dtype))
    for layer in layers:
        del layer.route
    return torch.cat([s.flatten(1) for s in caught], -1)


def pixels(image: np.ndarray) -> Tensor:
    """(1, 3, H, W) in [-1, 1] of uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def neighbour_accuracy(x: np.ndarray, labels: Sequence[str]) -> float:
    """Share of rows whose most frequent label among the 5 nearest other rows is theirs; ties go to the nearest."""
    squared = (x**2).sum(1)
    distance = squared[:, None] + squared[None] - 2 * x @ x.T
    np.fill_diagonal(distance, np.inf)
    hits = 0
    for i, row in enumerate(distance):
        near = [labels[j] for j in np.argsort(row, kind="stable")[:NEIGHBOURS]]
        hits += max(near, key=lambda label: (near.count(label), -near.index(label))) == labels[i]
    return hits / len(labels)


def router_map(file: Path) -> str:
    """t-SNE of a router's outputs, as in the paper's figure: a colour per style, the concept's group on hover; SVG."""
    with np.load(file) as stored:
        x, styles, groups = tsne(stored["outputs"]), stored["knn_style"], stored["knn_concept"]
    axes = [plots.Axis.over(x[:, i].tolist(), f"t-SNE {i + 1}") for i in (0, 1)]
    frame, names = plots.Frame(*axes), sorted(set(styles.tolist()))
    marks = [
        plots.dot(frame, (float(a), float(b)), names.index(style), "", f"{style}, {group}")
        for (a, b), style, group in zip(x, styles.tolist(), groups.tolist(), strict=True)
    ]
    return plots.standalone(plots.svg(frame, "The router's outputs", *marks, keys=names))


JOBS = {"router": router_job}
