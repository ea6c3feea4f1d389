"""The packaged slice against the reference rendering, if that is available (../shared).

One held-out style only, because the reference unpacks to 800 MB; `python tools/compare_artworld.py` compares all.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from impasto.artworld import load_slice, style_index

REFERENCE = Path(__file__).parents[3] / "shared/data/artworld/artworld128.npz"
pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason="no reference rendering beside the project")


def test_slice_matches_reference_rendering():
    style = style_index("fluent-emoji-3d")
    world = load_slice(styles=[style])
    with np.load(REFERENCE) as reference:
        rows = np.flatnonzero(reference["style_id"] == style)
        row_of = dict(zip(reference["concept_id"][rows].tolist(), rows.tolist(), strict=True))
    wanted = {row_of[concept]: picture for concept, picture in zip(world.concept_id.tolist(), world.rgb(), strict=True)}
    difference = []
    with zipfile.ZipFile(REFERENCE) as archive, archive.open("images.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        for row in range(max(wanted) + 1):
            data = stream.read(int(np.prod(shape[1:])))
            if row in wanted:
                truth = np.frombuffer(data, np.uint8).reshape(shape[1:]).astype(int)
                difference.append(np.abs(truth - wanted[row]).mean())
    assert len(difference) == 76 and np.median(difference) < 2 and max(difference) < 10
