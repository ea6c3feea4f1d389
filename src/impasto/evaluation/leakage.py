"""Content leakage: the reference's object in images of other concepts.

An image leaks when the concept judge's probability of the reference's concept is at least `threshold`. Images whose
prompt names that concept or none are excluded. Since the judge errs and some concepts look alike, compare the share
with that of the base without adapter and of the true images.
"""

from collections.abc import Sequence

from torch import Tensor


def leaks(
    probabilities: Tensor, concepts: Sequence[int | None], reference: int | None, threshold: float
) -> list[bool | None]:
    """Per image whether it shows the concept `reference`; None for excluded images (see above).

    probabilities [n, concepts] in [0, 1]; threshold in [0, 1].
    """
    if reference is None:
        return [None] * len(concepts)
    shown = (probabilities[:, reference] >= threshold).tolist()
    return [
        None if concept is None or concept == reference else bool(hit)
        for concept, hit in zip(concepts, shown, strict=True)
    ]
