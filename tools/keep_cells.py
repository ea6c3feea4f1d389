"""Keep the results of a comparison's cells (`impasto compare`) in one file that can be committed, and bring them back.

    python tools/keep_cells.py pack runs/compare-mini-sd15 docs/results/compare/cells-mini-sd15.jsonl.gz
    python tools/keep_cells.py unpack docs/results/compare/cells-mini-sd15.jsonl.gz runs/compare-mini-sd15

After `unpack` the same `impasto compare` command finds these cells done and runs the others only. Images and styles are
not kept: grids lack the rows of cells that were brought back. A line of the file: {"cell": its folder's name, ...
content of its cell.json}.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from impasto.compare.cells import RESULT
from impasto.files import atomic, write_json_lines


def pack(folder: Path, file: Path) -> int:
    """Write the cells of a comparison's folder, with those that only the file has, into the file; returns their
    number. The same cells give the same bytes."""
    cells = read(file) if file.is_file() else {}
    for result in (folder / "cells").glob(f"*/{RESULT}"):
        cells[result.parent.name] = json.loads(result.read_text(encoding="utf-8"))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(file, ({"cell": name} | cells[name] for name in sorted(cells)))
    return len(cells)


def unpack(file: Path, folder: Path) -> int:
    """Write the file's cells into a comparison's folder, except those that are there; returns their number."""
    written = 0
    for name, content in read(file).items():
        result = folder / "cells" / name / RESULT
        if result.exists():
            continue
        result.parent.mkdir(parents=True, exist_ok=True)
        with atomic(result) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written += 1
    return written


def read(file: Path) -> dict[str, dict[str, Any]]:
    """{name of a cell's folder: content of its cell.json}."""
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    return {row.pop("cell"): row for row in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    print((pack if given.what == "pack" else unpack)(given.source, given.target), "cells")
