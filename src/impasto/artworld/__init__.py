"""The art world: 1,194 concepts in 19 styles, paired, so that style transfer is measured against ground truth."""

from impasto.artworld.world import (
    ArtWorld,
    cache_dir,
    concept_index,
    drawn_in,
    free_concepts,
    load,
    load_meta,
    load_slice,
    over,
    spread,
    style_index,
)

__all__ = [
    "ArtWorld",
    "cache_dir",
    "concept_index",
    "drawn_in",
    "free_concepts",
    "load",
    "load_meta",
    "load_slice",
    "over",
    "spread",
    "style_index",
]
