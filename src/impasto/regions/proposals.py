"""Proposals: boxes that may each hold one thing, from the image alone.

On a plain ground the connected components of the foreground are merged, nearest first, until there are as many as
things are asked for; on a textured ground, windows of three sizes are proposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from impasto.data.concepts import Box

BORDER = 3  # pixels at each edge that show the ground
PLAIN_SHARE = 0.85  # of the border within TOLERANCE of its median: a plain ground
TOLERANCE = 24  # of 255, the largest difference of a channel
SMALLEST = 0.0002  # of the image: smaller components are specks
MOST_COMPONENTS = 60
WINDOW_SIDES = (0.35, 0.5, 0.7)  # of the shorter side of the image


@dataclass(frozen=True)
class Proposal:
    """A box and, on a plain ground, which of the pixels belong to it: bool [H, W] of the whole image, else None."""

    box: Box
    mask: np.ndarray | None = None


def ground_colour(rgb: np.ndarray) -> np.ndarray | None:
    """The colour of a plain ground, uint8 [3]; None where the border of rgb (uint8 [H, W, 3]) has several colours."""
    edges = (rgb[:BORDER], rgb[-BORDER:], rgb[:, :BORDER], rgb[:, -BORDER:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    colour = np.median(border, axis=0)
    near = np.abs(border - colour).max(1) <= TOLERANCE
    return colour.astype(np.uint8) if near.mean() >= PLAIN_SHARE else None


def foreground(rgb: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from the ground by more than TOLERANCE in a channel."""
    return np.abs(rgb.astype(np.int16) - ground.astype(np.int16)).max(-1) > TOLERANCE


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components of a mask (bool [H, W]) as masks, largest first, without specks.

    Labels spread by maxima over 3 x 3 neighbourhoods until nothing changes.
    """
    there = torch.from_numpy(mask)
    labels = torch.arange(1, mask.size + 1, dtype=torch.float32).view(1, 1, *mask.shape) * there
    while True:
        spread = labels
        for _ in range(16):
            spread = max_pool2d(spread, 3, 1, 1) * there
        if torch.equal(spread, labels):
            break
        labels = spread
    names, counts = labels[labels > 0].unique(return_counts=True)
    kept = [name for name, n in zip(names, counts, strict=True) if n >= SMALLEST * mask.size]
    kept.sort(key=lambda name: -int(counts[names == name]))
    return [(labels[0, 0] == name).numpy() for name in kept[:MOST_COMPONENTS]]


def box_of(mask: np.ndarray) -> Box:
    """The extent of a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def propose(image: Image.Image, n: int) -> list[Proposal]:
    """Proposals for n things: n merged components where a plain ground shows that many, else also windows."""
    rgb = np.asarray(image.convert("RGB"))
    ground = ground_colour(rgb)
    parts = [] if ground is None else components(foreground(rgb, ground))
    found = [Proposal(box_of(mask), mask) for mask in merge(parts, n)]
    return found if len(found) == n else [*found, *map(Proposal, windows(image.width, image.height))]


def merge(masks: list[np.ndarray], n: int) -> list[np.ndarray]:
    """Join two components at a time until at most n are there: those that are near, of which one is small, and whose
    common box is hardly larger than one of them.

    cost = (gap + 1) * smaller side * (common side / larger side - .9), sides being the longer ones of each box.
    """
    masks, gap = list(masks), gaps(masks)
    while len(masks) > n:
        boxes = [box_of(mask) for mask in masks]
        sides = [longer(box) for box in boxes]
        costs = {}
        for i, j in combinations(range(len(masks)), 2):
            growth = longer(union(boxes[i], boxes[j])) / max(sides[i], sides[j]) - 0.9
            costs[i, j] = (gap[i, j] + 1) * min(sides[i], sides[j]) * growth
        i, j = min(costs, key=costs.__getitem__)
        masks[i] = masks[i] | masks.pop(j)
        gap[i] = gap[:, i] = np.minimum(gap[i], gap[j])
        gap = np.delete(np.delete(gap, j, 0), j, 1)
    return masks


def gaps(masks: list[np.ndarray], most: int = 400) -> np.ndarray:
    """float [n, n]: distance in pixels between the edges of two masks, of which at most about `most` points count."""
    points = []
    for mask in masks:
        edge = mask.copy()
        edge[1:-1, 1:-1] &= ~(mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:])
        found = np.argwhere(edge)
        points.append(torch.from_numpy(found[:: max(1, len(found) // most)]).float())
    distance = np.zeros((len(masks), len(masks)))
    for i in range(len(masks)):
        for j in range(i):
            distance[i, j] = distance[j, i] = torch.cdist(points[i], points[j]).min().item() - 1
    return distance


def union(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def longer(box: Box) -> int:
    """The longer side."""
    return max(box[2] - box[0], box[3] - box[1])


def windows(width: int, height: int) -> Iterator[Box]:
    """Squares of WINDOW_SIDES, each half over the next one."""
    for share in WINDOW_SIDES:
        side = round(share * min(width, height))
        columns, rows = (
            np.linspace(0, length - side, max(2, round(2 * length / side) - 1)) for length in (width, height)
        )
        for top in rows.round().astype(int).tolist():
            for left in columns.round().astype(int).tolist():
                yield left, top, left + side, top + side


def crop(image: Image.Image, proposal: Proposal, size: int, fill: float = 0.875) -> Image.Image:
    """What a proposal holds, as a square of `size` pixels whose longer side it fills to the share `fill`.

    Of a proposal with a mask other pixels have the colour of the ground; a window is cut out as it is.
    """
    left, top, right, bottom = proposal.box
    if proposal.mask is None:
        return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, proposal.box)
    rgb = np.asarray(image.convert("RGB"))
    ground = ground_colour(rgb)
    assert ground is not None
    halo = max_pool2d(torch.from_numpy(proposal.mask)[None, None].float(), 5, 1, 2)[0, 0].bool().numpy()
    alone = np.where(halo[..., None], rgb, ground)[top:bottom, left:right]
    side = max(1, round(longer(proposal.box) / fill))
    square = Image.new("RGB", (side, side), tuple(ground.tolist()))
    square.paste(Image.fromarray(alone), ((side - alone.shape[1]) // 2, (side - alone.shape[0]) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)
