"""The art world in memory: images with straight alpha, each with its style and concept."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from impasto.errors import UserError, nearest
from impasto.files import cache_dir as _cache_dir

DATA_NAME = "artworld128.safetensors"

# Concepts of reference images: core concepts, not evaluation concepts, from all five groups of the core, available in
# all 12 train styles and in as many held-out styles as possible (4 to 7, 6.3 on average).
REFERENCE_LABELS = (
    *("rabbit face", "pig face", "cat", "bear", "elephant", "seedling"),
    *("tangerine", "bread", "cookie", "tomato"),
    *("artist palette", "basketball"),
    *("crown", "microphone", "television", "t-shirt", "guitar", "microscope"),
    *("airplane", "bus", "fire", "hourglass done", "castle", "sailboat"),
)


def cache_dir() -> Path:
    """The folder of the built art world: `$IMPASTO_CACHE/artworld`, by default `~/.cache/impasto/artworld`."""
    return _cache_dir("artworld")


@dataclass(frozen=True)
class ArtWorld:
    """n images, 128 px.

    rgba: uint8 [n, 128, 128, 4], straight alpha, colour 0 where alpha is 0; the object fills 87.5 % of the canvas.
    style_id, concept_id: int16 [n], indices into `meta["style_names"]` and `meta["concepts"]`.
    meta: see `load_meta`.
    """

    rgba: np.ndarray
    style_id: np.ndarray
    concept_id: np.ndarray
    meta: dict = field(repr=False)

    def __len__(self) -> int:
        return len(self.style_id)

    def rgb(self, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
        """The images over a plain `background` (three values of 0..255): uint8 [n, 128, 128, 3]."""
        return over(self.rgba, background)

    def rows(self, styles: Iterable | None = None, concepts: Iterable | None = None) -> np.ndarray:
        """Indices (int64, ascending) of the images of these styles and concepts (names or ids; None: all)."""
        return np.flatnonzero(_chosen(self.style_id, self.concept_id, styles, concepts, self.meta))

    def select(self, styles: Iterable | None = None, concepts: Iterable | None = None) -> "ArtWorld":
        """The art world restricted to these styles and concepts (names or ids; None: all)."""
        rows = self.rows(styles, concepts)
        return ArtWorld(self.rgba[rows], self.style_id[rows], self.concept_id[rows], self.meta)

    def index(self, style: str | int, concept: str | int) -> int:
        """The row of one image. Raises UserError for an unknown name or a missing pair."""
        row = self.table()[style_index(style, self.meta), concept_index(concept, self.meta)]
        if row < 0:
            raise UserError(f"there is no image of {concept!r} in style {style!r}")
        return int(row)

    def table(self) -> np.ndarray:
        """int32 [19, 1194]: the row of every (style, concept), -1 if there is no image."""
        return self._table

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full((len(self.meta["style_names"]), len(self.meta["concepts"])), -1, np.int32)
        table[self.style_id, self.concept_id] = np.arange(len(self))
        return table


def over(rgba: np.ndarray, background: Sequence[int] | np.ndarray) -> np.ndarray:
    """alpha * colour + (1 - alpha) * background, rounded: uint8 [..., 4] -> uint8 [..., 3].

    `background` is one colour, or anything that broadcasts to the result's shape, 0..255.
    """
    result = np.empty((*rgba.shape[:-1], 3), np.uint8)
    ground = np.broadcast_to(np.asarray(background, np.uint16), result.shape)
    if rgba.ndim > 3:  # one image at a time fits the CPU cache
        for i in range(len(rgba)):
            result[i] = over(rgba[i], ground[i])
        return result
    alpha = rgba[..., 3].astype(np.uint16)
    for channel in range(3):  # much faster than one product with an innermost axis of three
        mix = rgba[..., channel] * alpha
        mix += ground[..., channel] * (255 - alpha)
        mix += 128
        mix += mix >> 8  # (x + 128 + (x + 128 >> 8)) >> 8 is x / 255 rounded, for x up to 255^2
        mix >>= 8
        result[..., channel] = mix
    return result


def load(styles: Iterable | None = None, concepts: Iterable | None = None, path: Path | str | None = None) -> ArtWorld:
    """The built art world; only the selected images are decoded (all of them: 1.1 GB, some seconds).

    styles: names or ids; concepts: labels, hex codes or ids; None: all.
    path: the data file; default `cache_dir() / "artworld128.safetensors"`.
    Raises UserError when it is not built, lacks one of `styles`, or cannot be read.
    """
    path = Path(path) if path is not None else cache_dir() / DATA_NAME
    if not path.is_file():
        raise UserError(f"the art world is not built ({path} is missing): run `impasto artworld build`")
    return _load(path, styles, concepts)


def load_slice(styles: Iterable | None = None, concepts: Iterable | None = None) -> ArtWorld:
    """The slice in the package: the 7 held-out styles x (52 evaluation + 24 reference concepts)."""
    return _load(Path(str(files("impasto.artworld").joinpath("data/slice.safetensors"))), styles, concepts)


def _load(path: Path, styles: Iterable | None, concepts: Iterable | None) -> ArtWorld:
    meta = load_meta()
    try:
        with safe_open(path, "numpy") as file:
            data = {name: file.get_tensor(name) for name in ("webp", "offset", "style_id", "concept_id")}
    except Exception as error:  # safetensors raises its own type
        raise UserError(f"{path} cannot be read ({error}): run `impasto artworld build`") from error
    if styles is not None:
        styles = [style_index(style, meta) for style in styles]
        absent = [meta["style_names"][style] for style in styles if style not in data["style_id"]]
        if absent:
            raise UserError(f"{path} has no images of {', '.join(absent)}: run `impasto artworld build`")
    rows = np.flatnonzero(_chosen(data["style_id"], data["concept_id"], styles, concepts, meta))
    rgba = np.empty((len(rows), 128, 128, 4), np.uint8)
    for target, row in zip(rgba, rows, strict=True):
        encoded = data["webp"][data["offset"][row] : data["offset"][row + 1]].tobytes()
        target[:] = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGBA"))
    return ArtWorld(rgba, data["style_id"][rows], data["concept_id"][rows], meta)


def _chosen(style_id, concept_id, styles: Iterable | None, concepts: Iterable | None, meta: dict) -> np.ndarray:
    chosen = np.ones(len(style_id), bool)
    if styles is not None:
        chosen &= np.isin(style_id, [style_index(style, meta) for style in styles])
    if concepts is not None:
        chosen &= np.isin(concept_id, [concept_index(concept, meta) for concept in concepts])
    return chosen


def style_index(style: str | int, meta: dict | None = None) -> int:
    """The id of a style, by name or id. Raises UserError for an unknown one."""
    names = (meta or load_meta())["style_names"]
    if isinstance(style, str):
        if style not in names:
            raise UserError(f"unknown style {style!r}: {nearest(style, names)}")
        return names.index(style)
    if not 0 <= style < len(names):
        raise UserError(f"style ids go from 0 to {len(names) - 1}, not {style}")
    return int(style)


def concept_index(concept: str | int, meta: dict | None = None) -> int:
    """The id of a concept, by label ("rabbit face"), hex code ("1f430") or id. Raises UserError for an unknown one."""
    meta = meta or load_meta()
    if isinstance(concept, str):
        known = _concept_names()
        if concept not in known:
            hint = nearest(concept, [c["label"] for c in meta["concepts"]]).partition("known:")[0]
            raise UserError(f"unknown concept {concept!r}: {hint}1,194 are known, by label, hex code or id")
        return known[concept]
    if not 0 <= concept < len(meta["concepts"]):
        raise UserError(f"concept ids go from 0 to {len(meta['concepts']) - 1}, not {concept}")
    return int(concept)


@cache
def _concept_names() -> dict[str, int]:
    concepts = load_meta()["concepts"]
    return {c["hex"]: i for i, c in enumerate(concepts)} | {c["label"]: i for i, c in enumerate(concepts)}


def free_concepts() -> list[int]:
    """Ids of the concepts for choosing settings: core concepts in all train styles, neither evaluation nor reference
    concepts."""
    split = load_meta()["split"]
    banned = {*split["evaluation_concepts"], *split["reference_concepts"]}
    return [concept for concept in split["core_everywhere"] if concept not in banned]


@cache
def load_meta() -> dict:
    """Metadata of styles and concepts; ids are positions in these lists. Cached: do not modify.

    style_names: 19 names. drawn: per style, the ids of its concepts.
    styles: {name, n, package, version, licence, author, family, descriptions (2), colour, kind, format}.
    concepts: 1,194 x {hex, emoji, label, group, subgroup, captions, keywords, n_styles}. captions: their `captions`.
    recommended: the split of the data. split: the same as lists of ids, with derived sets:
    train_styles (12), primary_styles (3), secondary_styles (4), heldout_styles (the 7 of both),
    evaluation_concepts (52), core_concepts (835), reference_concepts (24),
    core_everywhere (core concepts available in all 12 train styles, and the evaluation concepts).
    """
    packed = files("impasto.artworld").joinpath("data/meta.json.gz").read_bytes()
    meta = json.loads(gzip.decompress(packed))
    meta["captions"] = [concept["captions"] for concept in meta["concepts"]]
    concept_id = {concept["hex"]: i for i, concept in enumerate(meta["concepts"])}
    meta["drawn"] = [[] for _ in meta["style_names"]]
    for style, concept, _ in alignment():
        meta["drawn"][meta["style_names"].index(style)].append(concept_id[concept])
    meta["split"] = _split(meta)
    return meta


@cache
def alignment() -> list[tuple[str, str, str]]:
    """The 16,464 checked pairs: (style name, concept's hex code, source in the style's package)."""
    packed = files("impasto.artworld").joinpath("data/alignment.tsv.gz").read_bytes()
    rows = csv.DictReader(io.StringIO(gzip.decompress(packed).decode()), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(row["style"], row["concept"], row["source"]) for row in rows]


def _split(meta: dict) -> dict[str, list[int]]:
    recommended, style_id = meta["recommended"], meta["style_names"].index
    label_id = {concept["label"]: i for i, concept in enumerate(meta["concepts"])}
    train = sorted(map(style_id, recommended["train_styles"]))
    primary = sorted(map(style_id, recommended["heldout_styles"]))
    secondary = sorted(map(style_id, recommended["heldout_styles_secondary"]))
    evaluation, core = set(recommended["heldout_concepts"]), set(recommended["core_concepts"])
    everywhere = {concept for concept in core if all(concept in meta["drawn"][style] for style in train)}
    return {
        "train_styles": train,
        "primary_styles": primary,
        "secondary_styles": secondary,
        "heldout_styles": sorted(primary + secondary),
        "evaluation_concepts": sorted(evaluation),
        "core_concepts": sorted(core),
        "reference_concepts": sorted(label_id[label] for label in REFERENCE_LABELS),
        "core_everywhere": sorted(everywhere | evaluation),
    }


@cache
def drawn_in(style: int) -> frozenset[int]:
    """The packaged slice's concepts in a held-out style."""
    return frozenset(load_slice(styles=[style]).concept_id.tolist())


def spread(items: Sequence[int], n: int) -> list[int]:
    """`n` evenly spaced items."""
    if not 1 <= n <= len(items):
        raise UserError(f"{n} concepts are needed, there are {len(items)}")
    return [items[i * len(items) // n] for i in range(n)]
