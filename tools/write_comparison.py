"""Publish comparisons of `impasto compare`: docs/results/compare/README.md, table.json and a grid of images each.

    python tools/write_comparison.py runs/compare-mini-sd15 runs/compare-mini-sd3

table.json: {base: the comparison's own table.json}. Grids are written as WebP, of the first reference of each style.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.compare.cells import SCORES
from impasto.compare.comparison import TABLE
from impasto.compare.page import gigabytes, seconds, size, with_error
from impasto.evaluation.table import decimal
from impasto.files import atomic

OUT = Path("docs/results/compare")
HEAD = """# Methods side by side

Every method of impasto on references of the three primary held-out styles of the art world, with the same references,
prompts and seeds, by the packaged judges ([how](../../compare.md); [which method for whom](../../which-method.md)). The
commands are below the tables; `python tools/write_comparison.py FOLDER...` made this page from their results
([table.json](table.json)).

*Style at equal text*: the method's style where its text is that of the reference row at its own strength; the error is
the jackknife's over references. *Style*, *text*, *leakage*: at the method's own strength. Costs: one CPU thread.
"""
COLUMNS = ("method", "style at equal text", "at strength", *SCORES, "training", "per image", "memory", "style file")


def section(content: Mapping[str, Any], images: list[str]) -> list[str]:
    """The part of one base."""
    base, shown = content["base"], content["references"]
    lines = [
        f"## {base}",
        "",
        f"{len(shown)} references: {'; '.join(shown)}. Text of {content['reference_row']}: {decimal(content['text'])}.",
        "",
    ]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [line_of(row) for row in content["rows"]] + [""]
    lines += [f"failed: {line}\n" for line in content["failed"]] + [
        f"{k} was left out: {v}\n" for k, v in content["skipped"].items()
    ]
    lines += [f"![{base}: methods by rank, the true images first]({name})" for name in images]
    return [*lines, "", "```sh", content["command"] or "", "```", ""]


def line_of(row: Mapping[str, Any]) -> str:
    read, own = row["equal_text"], row["scores"]
    reached = [with_error(read), decimal(read["strength"])] if read["reaches"] else ["does not reach it", ""]
    scores = [with_error(own.get(name), "mean") for name in SCORES]
    costs = [
        seconds(row["train_seconds"]),
        seconds(row["seconds_per_image"]),
        gigabytes(row["peak_memory_gb"]),
        size(row["bytes"]),
    ]
    return f"| {' | '.join([row['recipe'], *reached, *scores, *costs])} |"


def write_grids(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """The first reference's grid of each style, in OUT; returns the file names."""
    names, styles = [], set()
    for i, reference in enumerate(content["references"]):
        file, style = folder / f"grid{f'-{i}' if i else ''}.png", reference.split(",")[0]
        if style in styles or not file.is_file():
            continue
        styles.add(style)
        names.append(f"{content['base']}-{style}.webp")
        with atomic(OUT / names[-1]) as temporary:
            Image.open(file).convert("RGB").save(temporary, "WEBP", quality=85)
    return names


def main(folders: list[Path]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    tables, lines = {}, [HEAD]
    for folder in folders:
        content = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        tables[content["base"]] = content
        lines += section(content, write_grids(folder, content))
    for name, text in (
        ("table.json", json.dumps(tables, indent=1, ensure_ascii=False) + "\n"),
        ("README.md", "\n".join(lines)),
    ):
        with atomic(OUT / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    main(parser.parse_args().folders)
