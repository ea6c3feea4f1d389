"""The judges' scores of single images: style (19), coarse kind, concept (1,194)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Row = dict[str, Any]


def style_rows(probabilities: Tensor, names: Sequence[str], kinds: Sequence[str], style: int | None) -> list[Row]:
    """One row per image from style probabilities [n, styles] that sum to 1.

    `style_accuracy`: the most probable style is `style`; `kind_accuracy`: it has the coarse kind of `style`;
    `style_probability`: the probability of `style`; `style_judged`: the most probable style. All None when `style` is
    None (not a style of the judge).
    """
    rows = []
    for row in probabilities:
        best = int(row.argmax())
        rows.append(
            {
                "style_judged": names[best] if style is not None else None,
                "style_accuracy": best == style if style is not None else None,
                "kind_accuracy": kinds[best] == kinds[style] if style is not None else None,
                "style_probability": float(row[style]) if style is not None else None,
            }
        )
    return rows


def concept_rows(probabilities: Tensor, names: Sequence[str], concepts: Sequence[int | None]) -> list[Row]:
    """One row per image from concept probabilities [n, concepts], each in [0, 1], and the expected concepts [n].

    The rank is the number of concepts with at least the probability of the expected one, so ties count against the
    image; `concept_top1` is rank 1, `concept_top5` rank <= 5. None if the expected concept is unknown.
    """
    rows = []
    for row, concept in zip(probabilities, concepts, strict=True):
        rank = None if concept is None else int((row >= row[concept]).sum())
        rows.append(
            {
                "concept": None if concept is None else names[concept],
                "concept_judged": [names[int(i)] for i in row.topk(min(5, len(row))).indices],
                "concept_rank": rank,
                "concept_top1": None if rank is None else rank == 1,
                "concept_top5": None if rank is None else rank <= 5,
            }
        )
    return rows
