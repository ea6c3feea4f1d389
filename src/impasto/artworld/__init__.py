"""The art world: the same 1,194 things drawn in 19 styles, so that how well a style took is measured on the truth."""

from impasto.artworld.world import (
    ArtWorld,
    cache_dir,
    concept_index,
    free_concepts,
    load,
    load_meta,
    load_slice,
    over,
    style_index,
)

__all__ = [
    "ArtWorld",
    "cache_dir",
    "concept_index",
    "free_concepts",
    "load",
    "load_meta",
    "load_slice",
    "over",
    "style_index",
]
