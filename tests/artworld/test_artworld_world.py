"""The packaged data: ids, split, slice, selection."""

import numpy as np
import pytest

from impasto.artworld import cache_dir, concept_index, load, load_meta, load_slice, over, style_index
from impasto.errors import UserError

META = load_meta()
SPLIT = META["split"]


@pytest.fixture(scope="module")
def held_out():
    return load_slice()


def test_ids_match_data():
    assert len(META["style_names"]) == 19 and len(META["concepts"]) == 1194
    assert META["style_names"][5] == "fluent-emoji-3d" and META["style_names"][15] == "unifont"
    assert style_index("unifont") == 15 == style_index(15)
    assert concept_index("rabbit face") == concept_index("1f430")
    assert META["captions"][concept_index("bullseye")][0] == "bullseye"


def test_split_has_expected_sizes_and_is_disjoint():
    sizes = {name: len(ids) for name, ids in SPLIT.items()}
    assert sizes == {
        "train_styles": 12,
        "primary_styles": 3,
        "secondary_styles": 4,
        "heldout_styles": 7,
        "evaluation_concepts": 52,
        "core_concepts": 835,
        "reference_concepts": 24,
        "core_everywhere": 471,
    }
    evaluation, core, reference = (set(SPLIT[f"{kind}_concepts"]) for kind in ("evaluation", "core", "reference"))
    assert not set(SPLIT["train_styles"]) & set(SPLIT["heldout_styles"])
    assert evaluation < core and reference < core and not evaluation & reference
    assert reference < set(SPLIT["core_everywhere"]) and evaluation < set(SPLIT["core_everywhere"])
    drawn = [set(concepts) for concepts in META["drawn"]]
    for concept in set(SPLIT["core_everywhere"]) - evaluation:
        assert all(concept in drawn[style] for style in SPLIT["train_styles"])
    for concept in reference:
        assert all(concept in drawn[style] for style in SPLIT["primary_styles"])
    assert len({META["concepts"][concept]["group"] for concept in reference}) == 5


def test_slice_is_complete_small_and_without_sharealike(held_out):
    from impasto.artworld.sources import SHAREALIKE

    concepts = SPLIT["evaluation_concepts"] + SPLIT["reference_concepts"]
    cells = {
        (style, concept) for style in SPLIT["heldout_styles"] for concept in concepts if concept in META["drawn"][style]
    }
    assert set(zip(held_out.style_id.tolist(), held_out.concept_id.tolist(), strict=True)) == cells
    assert len(held_out) == 422 and held_out.rgba.shape == (422, 128, 128, 4)
    assert not {META["style_names"][style] for style in SPLIT["heldout_styles"]} & set(SHAREALIKE)
    from importlib.resources import files

    assert len(files("impasto.artworld").joinpath("data/slice.safetensors").read_bytes()) <= 6_000_000


def test_slice_images_are_fitted(held_out):
    assert (held_out.rgba[..., :3][held_out.rgba[..., 3] == 0] == 0).all()
    pixel = held_out.style_id == style_index("unifont")
    for rgba in held_out.rgba[~pixel]:
        rows, columns = (np.flatnonzero((rgba[..., 3] > 40).any(axis)) for axis in (1, 0))
        assert 100 <= max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 <= 114
    assert set(np.unique(held_out.rgba[pixel])) == {0, 255}


def test_select_index_and_table_agree(held_out):
    part = held_out.select(styles=["ph"], concepts=["cat", concept_index("rocket")])
    assert len(part) == 2 and set(part.style_id) == {style_index("ph")}
    row = held_out.index("ph", "cat")
    assert (held_out.rgba[row] == part.rgba[part.index("ph", "cat")]).all()
    table = held_out.table()
    assert table.shape == (19, 1194) and (table >= 0).sum() == len(held_out) and table[18, concept_index("cat")] == row
    assert (held_out.rows(concepts=["cat"]) == np.flatnonzero(held_out.concept_id == concept_index("cat"))).all()
    assert len(load_slice(styles=["unifont"], concepts=["frog"])) == 1


def test_over_is_exact():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (3, 16, 16, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    for ground in ((255, 255, 255), (10, 20, 200), rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)):
        assert (over(rgba, ground) == np.round(rgba[..., :3] * alpha + (1 - alpha) * np.asarray(ground))).all()
        if np.ndim(ground) == 1:
            assert (over(rgba[0], ground) == over(rgba, ground)[0]).all()


def test_unknown_names_raise_with_nearest(held_out, tmp_path):
    with pytest.raises(UserError, match="did you mean 'unifont'"):
        style_index("unifnot")
    with pytest.raises(UserError, match="did you mean 'rocket'"):
        concept_index("rockett")
    with pytest.raises(UserError, match="0 to 18"):
        style_index(19)
    with pytest.raises(UserError, match="no image"):
        held_out.index("ph", "moai")
    with pytest.raises(UserError, match="impasto artworld build"):
        load()
    with pytest.raises(UserError, match="cannot be read"):
        (tmp_path / "x.safetensors").write_bytes(b"no")
        load(path=tmp_path / "x.safetensors")


def test_cache_dir_follows_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path / "artworld"


def test_data_md_lists_packages_and_versions():
    from pathlib import Path

    from impasto.artworld.sources import sources

    rows = [line.split("|") for line in (Path(__file__).parents[2] / "DATA.md").read_text().splitlines()]
    listed = {
        row[2].strip(): (row[3].strip().removeprefix("Debian "), row[4].strip()) for row in rows if len(row) == 10
    }
    for style, entry in sources()["styles"].items():
        assert listed[style] == (entry["package"], sources()["packages"][entry["package"]]["version"])
