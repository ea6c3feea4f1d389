"""Diversity of a set of images: how far they are from each other."""

from torch import Tensor


def pairwise_diversity(embeddings: Tensor) -> float | None:
    """Mean of 1 - cosine over all pairs of unit vectors [n, d]: 0 for equal images, about 1 for unrelated ones. None
    below two images.

    Over images of different prompts it falls where a method repeats its reference whatever is prompted.
    """
    n = len(embeddings)
    if n < 2:
        return None
    cosines = embeddings @ embeddings.T
    return float(1 - (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
