"""Results of cells, packed into one file and brought back."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def keep(load_tool):
    return load_tool("keep_cells")


def write_cell(folder: Path, name: str, style: float) -> None:
    cell = folder / "cells" / name
    cell.mkdir(parents=True)
    (cell / "cell.json").write_text(json.dumps({"spec": {"seed": 0}, "curve": [{"factor": 1.0, "style": style}]}))


def test_cells_come_back_and_those_that_are_there_stay(keep, tmp_path):
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "kept" / "cells.jsonl.gz"
    write_cell(here, "b--cat--0--1", 0.5)
    write_cell(here, "a--cat--0--2", 0.25)
    (here / "cells" / "unfinished").mkdir()
    assert keep.pack(here, file) == 2
    write_cell(there, "a--cat--0--2", 0.75)
    assert keep.unpack(file, there) == 1
    found = {p.parent.name: json.loads(p.read_text()) for p in there.glob("cells/*/cell.json")}
    assert found["b--cat--0--1"] == json.loads((here / "cells/b--cat--0--1/cell.json").read_text())
    assert found["a--cat--0--2"]["curve"][0]["style"] == 0.75


def test_cells_that_only_the_file_has_stay_in_it(keep, tmp_path):
    file = tmp_path / "cells.jsonl.gz"
    write_cell(tmp_path / "one", "a--cat--0--1", 0.5)
    keep.pack(tmp_path / "one", file)
    write_cell(tmp_path / "two", "b--cat--0--2", 0.5)
    assert keep.pack(tmp_path / "two", file) == 2
    before = file.read_bytes()
    keep.pack(tmp_path / "two", file)
    assert file.read_bytes() == before
