"""Content leakage: the reference's own object where another one was asked for.

An image leaks when the concept judge gives the reference's concept at least `threshold`. Images whose prompt asks for
that very concept, or names none, are left out. The judge errs, and some concepts look alike: the share is read beside
the same share of the base without adapter and of the true pictures.
"""

from collections.abc import Sequence

from torch import Tensor


def leaks(
    probabilities: Tensor, concepts: Sequence[int | None], reference: int | None, threshold: float
) -> list[bool | None]:
    """Per image: does it show the concept `reference`? None when that cannot be said (see above).

    probabilities [n, concepts] in [0, 1]; threshold in [0, 1].
    """
    if reference is None:
        return [None] * len(concepts)
    shown = (probabilities[:, reference] >= threshold).tolist()
    return [
        None if concept is None or concept == reference else bool(hit)
        for concept, hit in zip(concepts, shown, strict=True)
    ]
