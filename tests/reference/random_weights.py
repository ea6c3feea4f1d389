"""Random weights and images that two environments make alike: NumPy alone. See tools/write_encoder_references.py."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

SIZES = ((64, 48), (50, 37), (37, 50), (41, 41))


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 arrays in the order of the names: norms about 1, weights of layers (lin*) positive, others small."""
    rng, found = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        values = rng.standard_normal(tuple(shapes[name])) * min(
            0.3, (2 / max(1, int(np.prod(shapes[name][1:])))) ** 0.5
        )
        if name.startswith("lin"):
            values = np.abs(values)
        elif len(shapes[name]) == 1 and name.endswith("weight"):
            values = 1 + 0.1 * values
        found[name] = values.astype(np.float32)
    return found


def random_images(seed: int = 0) -> list[Image.Image]:
    """Images of SIZES: coarse colour fields, enlarged, so that resampling matters."""
    rng = np.random.default_rng(seed)
    fields = [Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)) for _ in SIZES]
    return [field.resize(size, Image.Resampling.BICUBIC) for field, size in zip(fields, SIZES, strict=True)]
