"""CLIP-I and CLIP-T: cosines in the space of an encoder (evaluate/encoders.py).

The embedded small CLIP's text tower also conditions the embedded base models, and it was not trained on held-out
styles: its scores are reported beside the judges', for information only. Cosines are raw, in [-1, 1]; no factor 2.5, no
clipping.
"""

import torch
from torch import Tensor


def clip_i_reference(images: Tensor, reference: Tensor) -> Tensor:
    """Cosine [n] of each image embedding [n, d] with the reference's [1, d]; all of unit length."""
    return (images * reference).sum(dim=-1)


def clip_i_paired(images: Tensor, truths: Tensor) -> Tensor:
    """Cosine [n] of each image with the true image of the same cell."""
    return (images * truths).sum(dim=-1)


def clip_i_style(images: Tensor, truths: Tensor, concepts: list[int], true_concepts: list[int]) -> Tensor:
    """Mean cosine [n] of each image [n, d] with the true images [m, d] of *other* concepts: style without the object.

    NaN without a true image of another concept.
    """
    other = torch.tensor([[a != b for b in true_concepts] for a in concepts], dtype=images.dtype)
    return ((images @ truths.T) * other).sum(dim=1) / other.sum(dim=1)


def clip_t(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine [n] of each image with its prompt."""
    return (images * texts).sum(dim=-1)


def clip_leak(images: Tensor, texts: Tensor, caption: Tensor) -> Tensor:
    """bool [n]: the image is nearer to the reference's caption [1, d] than to its own prompt [n, d]; both name the same
    style, so what differs is the thing that they ask for."""
    return (images * caption).sum(dim=-1) > (images * texts).sum(dim=-1)
